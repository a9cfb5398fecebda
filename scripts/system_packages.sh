#!/bin/sh
# Debian packages that some tests drive: chromium (the dashboard), postgresql (the ledger), prometheus (promtool).
# As root on Debian what is missing is installed; elsewhere it is named, and the tests that need it are skipped.
missing=""
command -v chromium >/dev/null 2>&1 || missing="$missing chromium"
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"
command -v promtool >/dev/null 2>&1 || missing="$missing prometheus"
[ -z "$missing" ] && exit 0
say() { echo "system packages: tests that need$missing are skipped: $1" >&2; exit 0; }
[ "$(id -u)" -eq 0 ] || say "not root; sudo apt-get install --no-install-recommends$missing"
command -v apt-get >/dev/null 2>&1 || say "no apt-get on this machine"
export DEBIAN_FRONTEND=noninteractive
# No service may start by itself: the tests start their own servers on free ports.
policy=/usr/sbin/policy-rc.d
[ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy" && trap 'rm -f "$policy"' EXIT; }
for package in $missing; do
    apt-get install -y -qq --no-install-recommends "$package" >/dev/null 2>&1 && continue
    apt-get update -qq >/dev/null 2>&1
    apt-get install -y -qq --no-install-recommends "$package" >/dev/null 2>&1 ||
        echo "system packages: $package cannot be installed here; tests that need it are skipped" >&2
done
exit 0
