#!/bin/sh
# Makes the files of passwords and keys that compose.yaml mounts; files already there stay as they are.
# The folder is closed to others; the files themselves are readable, because they are mounted as they are into
# containers whose users differ from yours.
set -eu
cd "$(dirname "$0")"
chmod 0700 .
for name in postgres_password cdc_password redis_password grafana_password admin_key; do
    if [ -s "$name" ]; then
        echo "$name: kept"
    else
        # 24 bytes: 192 bits of randomness, as 48 hexadecimal digits
        head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n' > "$name"
        echo "$name: made"
    fi
    chmod 0444 "$name"
done
