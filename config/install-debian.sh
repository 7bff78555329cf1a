#!/bin/sh
# Installs or upgrades DICOMcloud on Debian 12 or Ubuntu 22.04 and newer: a system user, a virtual environment in
# /opt/dicomcloud, settings in /etc/dicomcloud, data in /var/lib/dicomcloud, systemd units, nginx with TLS, one user.
#
#   sudo config/install-debian.sh --host pacs.example [--certificate FILE --key FILE] [--user NAME]
#   sudo config/install-debian.sh --upgrade
#
# Run it from an unpacked release or a clone. It can be run again: settings, certificates and data that are there stay.
# Without --certificate it makes one itself, which browsers warn of. --no-start only puts everything in place.
set -eu

settings=/etc/dicomcloud/dicomcloud.toml
host=$(sed -n 's|^public_url *= *"https://\([^/:"]*\).*|\1|p' $settings 2>/dev/null || true)
[ -n "$host" ] || host=$(hostname -f 2>/dev/null || hostname)
certificate= key= user= upgrade= start=yes nginx=yes
while [ $# -gt 0 ]; do
  case $1 in
    --host) host=$2; shift ;;
    --certificate) certificate=$2; shift ;;
    --key) key=$2; shift ;;
    --user) user=$2; shift ;;
    --upgrade) upgrade=yes ;;
    --no-start) start= ;;
    --no-nginx) nginx= ;;
    -h|--help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "Unknown option $1; --help lists them." >&2; exit 2 ;;
  esac
  shift
done
[ "$(id -u)" = 0 ] || { echo "Run it as root: sudo $0" >&2; exit 1; }
command -v apt-get >/dev/null || { echo "This script is for Debian and Ubuntu." >&2; exit 1; }
case $host in *[!A-Za-z0-9.-]*|'') echo "--host $host is no host name." >&2; exit 2 ;; esac
if [ -n "$certificate$key" ] && { [ ! -r "$certificate" ] || [ ! -r "$key" ]; }; then
  echo "--certificate and --key go together and name files that can be read." >&2; exit 2
fi

source=$(cd "$(dirname "$0")/.." && pwd)
target=/opt/dicomcloud
data=/var/lib/dicomcloud
say() { echo "== $*"; }
as_service() { sh "$target/config/dicomcloud.sh" "$@"; }

say "Packages"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq python3 python3-venv openssl ca-certificates ${nginx:+nginx} >/dev/null
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "Python 3.11 or newer is needed; this system has $(python3 --version)." >&2
  echo "Ubuntu 22.04: apt install python3.11 python3.11-venv, then run: PYTHON=python3.11 $0 ..." >&2
  [ -n "${PYTHON:-}" ] || exit 1
}

say "User and folders"
getent group dicomcloud >/dev/null || groupadd --system dicomcloud
getent passwd dicomcloud >/dev/null ||
  useradd --system --gid dicomcloud --home-dir $data --no-create-home --shell /usr/sbin/nologin dicomcloud
install -d -m 0750 -o dicomcloud -g dicomcloud $data /var/backups/dicomcloud
install -d -m 0750 -o root -g dicomcloud /etc/dicomcloud

if [ -n "$upgrade" ] && [ -d $target/dicomcloud ]; then
  say "Backup of index and program before the upgrade"
  sh "$source/config/dicomcloud.sh" backup /var/backups/dicomcloud
  rm -rf $target.previous
  cp -a $target $target.previous
fi
# The old server goes on with the program that it has loaded until it is restarted below.

say "Program in $target"
install -d -m 0755 $target
if [ "$source" != $target ]; then
  for part in app.py wsgi.py requirements.txt README.md CHANGELOG.md LICENSE dicomcloud migrations config docs; do
    rm -rf "$target/$part.new"
    cp -R "$source/$part" "$target/$part.new"
    rm -rf "${target:?}/$part"
    mv "$target/$part.new" "$target/$part"
  done
fi
[ -x $target/.venv/bin/python ] || "${PYTHON:-python3}" -m venv $target/.venv
$target/.venv/bin/python -m pip install --quiet --disable-pip-version-check -r $target/requirements.txt
$target/.venv/bin/python -m compileall -q $target/dicomcloud $target/migrations
chown -R root:root $target
chmod -R go-w,a+rX $target
install -m 0755 $target/config/dicomcloud.sh /usr/local/bin/dicomcloud

say "Settings in $settings"
if [ ! -e $settings ]; then
  sed "s|^# public_url = .*|public_url = \"https://$host\"|" $target/config/production.toml >$settings
  chmod 0640 $settings
  chgrp dicomcloud $settings
fi

if [ -d /etc/systemd/system ]; then
  say "systemd units"
  cp $target/config/systemd/* /etc/systemd/system/
fi

if [ -n "$nginx" ]; then
  say "nginx"
  usermod -aG dicomcloud www-data
  cert=/etc/ssl/certs/dicomcloud.pem private=/etc/ssl/private/dicomcloud.key
  if [ -n "$certificate" ]; then
    install -m 0644 "$certificate" $cert
    install -m 0600 "$key" $private
  elif [ ! -e $cert ]; then
    install -d -m 0710 /etc/ssl/private
    openssl req -x509 -newkey rsa:2048 -nodes -days 825 -subj "/CN=$host" -addext "subjectAltName=DNS:$host" \
      -keyout $private -out $cert 2>/dev/null
    chmod 0600 $private
    echo "   A certificate of its own was made; put a real one in its place: $cert, $private"
  fi
  if [ ! -e /etc/nginx/conf.d/dicomcloud.conf ]; then
    sed -e "s|server_name pacs.example;|server_name $host;|" -e "s|/etc/ssl/certs/pacs.example.pem|$cert|" \
      -e "s|/etc/ssl/private/pacs.example.key|$private|" $target/config/nginx.conf >/etc/nginx/conf.d/dicomcloud.conf
    case $(nginx -v 2>&1) in
      *nginx/1.[0-9].*|*nginx/1.1[0-9].*|*nginx/1.2[0-4].*) ;;
      *) # from 1.25 on it is a directive of its own
        sed -i -e 's|\(listen .*443 ssl\) http2;|\1;|' -e 's|^\( *\)ssl_certificate |\1http2 on;\n&|' \
          /etc/nginx/conf.d/dicomcloud.conf ;;
    esac
    rm -f /etc/nginx/sites-enabled/default
  fi
  nginx -t -q
fi

say "Database"
as_service migrate
if [ -n "$user" ]; then
  say "User $user"
  as_service users add "$user" --role administrator
fi

if [ -n "$start" ]; then
  say "Start"
  systemctl daemon-reload
  systemctl enable -q dicomcloud dicomcloud-backup.timer dicomcloud-verify.timer
  systemctl restart dicomcloud
  systemctl start dicomcloud-backup.timer dicomcloud-verify.timer
  if [ -n "$nginx" ]; then systemctl enable -q nginx; systemctl restart nginx; fi
  as_service doctor || true
fi
say "Done: https://$host/ (settings: $settings; commands: sudo dicomcloud --help)"
