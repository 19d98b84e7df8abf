#!/bin/sh
# Installs a program that the tests drive from the system's packages where that
# can be done without asking, and says in one sentence what to do where it
# cannot: install-debian.sh PROGRAM PACKAGE
set -eu
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null
	exit 0
fi
echo "The tests need $1 on PATH: install it with your package manager (Debian, Ubuntu: sudo apt-get install $2), then run make test again." >&2
exit 1
