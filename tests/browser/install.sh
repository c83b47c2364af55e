#!/bin/sh
# Debian's chromium for the tests of pages, where it isn't there yet. Exits with 1, and says why, where it can't be had.
set -eu
chromium=$(command -v chromium || true)
if [ -n "$chromium" ]; then
    echo "chromium is there: $chromium"
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "no chromium, and no apt-get to install it: the tests of pages are skipped" >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "no chromium: the tests of pages are skipped. To have them: sudo $0" >&2
    exit 1
fi
apt-get update --quiet=2 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends --quiet=2 chromium
command -v chromium >/dev/null || { echo "apt-get has not installed chromium: the tests of pages are skipped" >&2; exit 1; }
