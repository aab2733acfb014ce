#!/usr/bin/env bash
# Installs Debian's Chromium for the tests of the page, where apt is there and may be used.
set -uo pipefail
command -v chromium > /dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    apt-get update -qq > /dev/null &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium > /dev/null &&
        exit 0
fi
echo "Chromium is not installed and apt cannot install it: the browser tests are skipped."
