#!/bin/sh
# Installs redis-server from the system's packages where that can be done
# without asking, and says in one sentence what to do where it cannot.
set -eu
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server >/dev/null
	exit 0
fi
echo 'The tests need redis-server on PATH: install it with your package manager (Debian, Ubuntu: sudo apt-get install redis-server), then run make test again.' >&2
exit 1
