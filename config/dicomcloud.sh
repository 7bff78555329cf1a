#!/bin/sh
# The command of an installed server: `sudo dicomcloud doctor`. config/install-debian.sh puts it in /usr/local/bin.
# It runs `python -m dicomcloud` with the settings of the service, as its user.
set -eu
export DICOMCLOUD_CONFIG="${DICOMCLOUD_CONFIG:-/etc/dicomcloud/dicomcloud.toml}" PYTHONPATH=/opt/dicomcloud
umask 027
set -- /opt/dicomcloud/.venv/bin/python -P -m dicomcloud "$@"
case $(id -u) in
  0) exec runuser -u dicomcloud -- "$@" ;;
  "$(id -u dicomcloud)") exec "$@" ;;
esac
echo "The files belong to the service's user; run it as root: sudo dicomcloud ..." >&2
exit 1
