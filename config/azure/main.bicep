// DICOMcloud on Azure: App Service (Linux), Azure SQL Database, Blob Storage. docs/deployment/azure.md says how to use it.
// azuredeploy.json is the same for the portal's "Deploy to Azure"; a test holds the two alike.

@description('Name of the web app; its address is https://NAME.azurewebsites.net.')
param siteName string = 'dicomcloud-${uniqueString(resourceGroup().id)}'

@description('Where everything is made.')
param location string = resourceGroup().location

@description('Size of a machine of the App Service plan.')
@allowed([
  'B2'
  'B3'
  'P0v3'
  'P1v3'
  'P2v3'
  'P3v3'
])
param planSku string = 'P1v3'

@description('How many machines serve (several nodes over one index and one store).')
@minValue(1)
@maxValue(10)
param nodes int = 1

@description('Login of the database administrator.')
param sqlAdministratorLogin string = 'dicomcloud'

@description('Password of the database administrator: 8 characters or more, of three kinds.')
@secure()
@minLength(8)
param sqlAdministratorPassword string

@description('Size of the database: service objective of Azure SQL Database.')
param sqlSku string = 'S2'

@description('How often the files are kept, and where.')
@allowed([
  'Standard_LRS'
  'Standard_ZRS'
  'Standard_GRS'
  'Standard_GZRS'
])
param storageAccountType string = 'Standard_ZRS'

@description('Send clients to Blob Storage for whole instances: off, programs or all (docs/object-storage.md).')
@allowed([
  'off'
  'programs'
  'all'
])
param presignedRedirects string = 'off'

@description('Origins of web pages whose scripts may use the archive, with commas; empty: none.')
param corsOrigins string = ''

@description('De-identify everything that is stored (docs/deidentification.md).')
param anonymizerEnabled bool = false

@description('Key of the de-identification; keep it: with another one pseudonyms change.')
@secure()
@minLength(16)
param anonymizerKey string = newGuid()

@description('OpenID Connect provider whose tokens are accepted; empty: users and API keys only (docs/access.md).')
param oidcIssuer string = ''

@description('Audience of those tokens; needed with oidcIssuer.')
param oidcAudience string = ''

@description('Git repository of the program.')
param repositoryUrl string = 'https://github.com/DICOMcloud/DICOMcloud'

@description('Branch or tag of it.')
param repositoryBranch string = 'main'

var storageName = 'dicom${uniqueString(resourceGroup().id)}'
var containerName = 'dicom'
var sqlServerName = 'dicomcloud-${uniqueString(resourceGroup().id)}'
var databaseName = 'dicomcloud'
var blobDataContributor = 'ba92f5b4-2d11-453d-a403-e96b0029c9fe'

resource storage 'Microsoft.Storage/storageAccounts@2023-01-01' = {
  name: storageName
  location: location
  kind: 'StorageV2'
  sku: {
    name: storageAccountType
  }
  properties: {
    accessTier: 'Hot'
    allowBlobPublicAccess: false
    allowSharedKeyAccess: false
    minimumTlsVersion: 'TLS1_2'
    supportsHttpsTrafficOnly: true
  }
}

resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2023-01-01' = {
  parent: storage
  name: 'default'
  properties: {
    deleteRetentionPolicy: {
      enabled: true
      days: 14
    }
  }
}

resource container 'Microsoft.Storage/storageAccounts/blobServices/containers@2023-01-01' = {
  parent: blobs
  name: containerName
  properties: {
    publicAccess: 'None'
  }
}

resource sqlServer 'Microsoft.Sql/servers@2021-11-01' = {
  name: sqlServerName
  location: location
  properties: {
    administratorLogin: sqlAdministratorLogin
    administratorLoginPassword: sqlAdministratorPassword
    minimalTlsVersion: '1.2'
    publicNetworkAccess: 'Enabled'
  }
}

resource database 'Microsoft.Sql/servers/databases@2021-11-01' = {
  parent: sqlServer
  name: databaseName
  location: location
  sku: {
    name: sqlSku
  }
}

// 0.0.0.0 lets Azure's own services in, and nobody else.
resource azureServices 'Microsoft.Sql/servers/firewallRules@2021-11-01' = {
  parent: sqlServer
  name: 'AllowAllWindowsAzureIps'
  properties: {
    startIpAddress: '0.0.0.0'
    endIpAddress: '0.0.0.0'
  }
}

resource plan 'Microsoft.Web/serverfarms@2022-09-01' = {
  name: siteName
  location: location
  kind: 'linux'
  sku: {
    name: planSku
    capacity: nodes
  }
  properties: {
    reserved: true
  }
}

resource site 'Microsoft.Web/sites@2022-09-01' = {
  name: siteName
  location: location
  kind: 'app,linux'
  identity: {
    type: 'SystemAssigned'
  }
  properties: {
    serverFarmId: plan.id
    httpsOnly: true
    clientAffinityEnabled: false
    siteConfig: {
      linuxFxVersion: 'PYTHON|3.11'
      appCommandLine: 'python -m dicomcloud serve'
      alwaysOn: true
      ftpsState: 'Disabled'
      minTlsVersion: '1.2'
      http20Enabled: true
      healthCheckPath: '/readyz'
      appSettings: [
        {
          name: 'DICOMCLOUD_BIND'
          value: '0.0.0.0:8000'
        }
        {
          name: 'DICOMCLOUD_AUTHENTICATION'
          value: 'required'
        }
        {
          name: 'DICOMCLOUD_DATA_DIR'
          value: '/tmp/dicomcloud'
        }
        {
          name: 'DICOMCLOUD_DATABASE_URL'
          value: 'mssql://${uriComponent('${sqlAdministratorLogin}@${sqlServerName}')}:${uriComponent(sqlAdministratorPassword)}@${sqlServer.properties.fullyQualifiedDomainName}:1433/${databaseName}?encryption=require&ca=system'
        }
        {
          name: 'DICOMCLOUD_STORAGE_URL'
          value: 'azure://${containerName}?account=${storageName}'
        }
        {
          name: 'DICOMCLOUD_STORAGE_CACHE_BYTES'
          value: '4 GiB'
        }
        {
          name: 'DICOMCLOUD_PUBLIC_URL'
          value: 'https://${siteName}.azurewebsites.net'
        }
        {
          name: 'DICOMCLOUD_PRESIGNED_REDIRECTS'
          value: presignedRedirects
        }
        {
          name: 'DICOMCLOUD_CORS_ORIGINS'
          value: corsOrigins
        }
        {
          name: 'DICOMCLOUD_ANONYMIZER_ENABLED'
          value: string(anonymizerEnabled)
        }
        {
          name: 'DICOMCLOUD_ANONYMIZER_KEY'
          value: anonymizerKey
        }
        {
          name: 'DICOMCLOUD_OIDC_ISSUER'
          value: oidcIssuer
        }
        {
          name: 'DICOMCLOUD_OIDC_AUDIENCE'
          value: oidcAudience
        }
        {
          name: 'WEBSITES_PORT'
          value: '8000'
        }
        {
          name: 'SCM_DO_BUILD_DURING_DEPLOYMENT'
          value: 'true'
        }
        {
          name: 'CUSTOM_REQUIREMENTSTXT_PATH'
          value: 'config/azure/requirements.txt'
        }
      ]
    }
  }
}

resource mayUseBlobs 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(storage.id, siteName, blobDataContributor)
  scope: storage
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', blobDataContributor)
    principalId: site.identity.principalId
    principalType: 'ServicePrincipal'
  }
}

resource code 'Microsoft.Web/sites/sourcecontrols@2022-09-01' = {
  parent: site
  name: 'web'
  properties: {
    repoUrl: repositoryUrl
    branch: repositoryBranch
    isManualIntegration: true
  }
  dependsOn: [
    mayUseBlobs
    container
    database
    azureServices
  ]
}

output dicomwebRoot string = 'https://${siteName}.azurewebsites.net/dicomweb'
output storageAccount string = storageName
