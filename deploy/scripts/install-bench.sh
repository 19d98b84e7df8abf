#!/bin/sh
# Installs what make bench compares with from the system's packages where that
# can be done without asking, and says in one sentence what to do where not.
set -eu
missing=
for tool in nginx haproxy caddy wrk taskset; do
	command -v "$tool" >/dev/null || missing="$missing $tool"
done
[ -n "$missing" ] || exit 0
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nginx-light haproxy caddy wrk util-linux >/dev/null
	exit 0
fi
echo "The comparison needs$missing on PATH: install them with your package manager (Debian: sudo apt-get install nginx-light haproxy caddy wrk), then run make bench again." >&2
exit 1
