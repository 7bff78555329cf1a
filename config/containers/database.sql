-- The database of DICOMcloud and a login that may do no more than DICOMcloud needs. compose.yaml has sqlcmd run it at
-- every start, with the variable MSSQL_LOGIN_PASSWORD; what is there stays.
IF DB_ID(N'dicomcloud') IS NULL CREATE DATABASE dicomcloud;
GO
IF EXISTS (SELECT 1 FROM sys.databases WHERE name = N'dicomcloud' AND is_read_committed_snapshot_on = 0)
    ALTER DATABASE dicomcloud SET READ_COMMITTED_SNAPSHOT ON WITH ROLLBACK IMMEDIATE;
GO
IF SUSER_ID(N'dicomcloud') IS NULL CREATE LOGIN dicomcloud WITH PASSWORD = '$(MSSQL_LOGIN_PASSWORD)';
GO
USE dicomcloud;
GO
IF USER_ID(N'dicomcloud') IS NULL CREATE USER dicomcloud FOR LOGIN dicomcloud;
GO
ALTER ROLE db_datareader ADD MEMBER dicomcloud;
ALTER ROLE db_datawriter ADD MEMBER dicomcloud;
ALTER ROLE db_ddladmin ADD MEMBER dicomcloud;
GO
