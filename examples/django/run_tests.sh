#!/usr/bin/env bash
# Runs the Django tests through a Rescind binary: ./run_tests.sh BINARY [test labels…]
# Needs Linux, redis-server and python3. VENV: where the virtualenv is (default .venv).
set -euo pipefail

usage="usage: $0 BINARY [manage.py test arguments…]"
binary=$(realpath "${1:?$usage}")
shift
[ -x "$binary" ] || { echo "not executable: $binary" >&2; exit 2; }
command -v redis-server >/dev/null || { echo "no redis-server on PATH" >&2; exit 2; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$(realpath -m "${VENV:-$here/.venv}")
tmp=$(mktemp -d)
pids=()

# Last started, first stopped: each is asked, has five seconds, and then has to.
stop() {
  local i tries
  for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
    tries=50
    kill "${pids[i]}" 2>/dev/null || true
    while kill -0 "${pids[i]}" 2>/dev/null && ((tries-- > 0)); do sleep 0.1; done
    kill -9 "${pids[i]}" 2>/dev/null || true
    wait "${pids[i]}" 2>/dev/null || true
  done
  rm -rf "$tmp"
}
trap stop EXIT
trap 'exit 130' INT TERM

fail() {
  echo "$1" >&2
  tail -n 40 "$tmp"/*.log >&2 || true
  exit 1
}

echo "== environment"
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
timeout 300 "$venv/bin/pip" install --quiet --disable-pip-version-check \
  --requirement "$here/requirements.txt"
python=$venv/bin/python

# Three ports at once, so that they differ.
read -r redis_port proxy_port admin_port < <("$python" - <<'PY'
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(s.getsockname()[1] for s in sockets))
PY
)

echo "== redis-server on $redis_port"
redis-server --bind 127.0.0.1 --port "$redis_port" --save "" --appendonly no \
  --dir "$tmp" >"$tmp/redis.log" 2>&1 &
pids+=($!)

# wait_for redis|readyz PORT PID: until it answers, at most 30 s and while PID lives.
wait_for() {
  timeout 30 "$python" - "$@" <<'PY'
import os, sys, time, urllib.request
import redis
what, port, pid = sys.argv[1:]
web = urllib.request.build_opener(urllib.request.ProxyHandler({}))
while True:
    try:
        if what == "redis":
            redis.Redis(port=int(port)).ping()
        else:
            web.open(f"http://127.0.0.1:{port}/readyz", timeout=2)
        break
    except (OSError, redis.RedisError):  # an HTTP error is an OSError
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            sys.exit(f"process {pid} is gone")
        time.sleep(0.05)
PY
}
wait_for redis "$redis_port" "${pids[0]}" || fail "redis-server does not answer"

echo "== ${binary##*/} on $proxy_port"
RESCIND_JOURNAL_PATH=$tmp/journal "$binary" --config "$here/proxy.toml" \
  --listen "127.0.0.1:$proxy_port" \
  --upstream "redis://127.0.0.1:$redis_port" \
  --admin "127.0.0.1:$admin_port" >"$tmp/rescind.log" 2>&1 &
pids+=($!)
wait_for readyz "$admin_port" "${pids[1]}" || fail "rescind did not become ready"

cd "$here"
export DJANGO_SETTINGS_MODULE=config.settings_test PYTHONDONTWRITEBYTECODE=1
export REDIS_URL=redis://127.0.0.1:$proxy_port/1
export REDIS_DIRECT_URL=redis://127.0.0.1:$redis_port/1
unset SESSION_REDIS_URL

echo "== cache_health_check"
timeout 30 "$python" manage.py cache_health_check --require-rescind ||
  fail "the cache is unhealthy"

echo "== manage.py test"
timeout 300 "$python" manage.py test "$@" & # in the background a signal reaches the trap
pids+=($!)
wait "${pids[2]}" || fail "the tests failed"

kill -0 "${pids[1]}" 2>/dev/null || fail "rescind is gone"
echo "== passed"
