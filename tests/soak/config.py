"""The proxies' proxy.toml: as small as the application needs."""

import subprocess
from pathlib import Path

TEMPLATE = """\
[listen]
address = ["127.0.0.1:{listen}"]

[upstream]
url = "redis://127.0.0.1:{redis}"

[admin]
address = "127.0.0.1:{admin}"

[keys]
prefix = "app:1:"

[tags]
"post:{{id}}" = ["post:{{id}}:*"]
Post = ["home_*"]

[[family]]
name = "posts"
keys = ["post:*"]
stale_fill = "{stale_fill}"
fill_window = "{window}s"

[[family]]
name = "home"
keys = ["home_*"]
stale_fill = "{stale_fill}"
fill_window = "{window}s"

[[trigger]]
name = "model saved"
keys = ["model:{{model}}:{{pk}}"]
invalidate = ["{{model}}", "post:{{pk}}"]

[[trigger]]
name = "tag"
keys = ["tag:{{tag*}}"]
invalidate = ["{{tag*}}"]

[journal]
path = "{journal}"
"""


def write(binary: Path, file: Path, listen: int, admin: int, redis: int, stale_fill: str, window: int) -> None:
    journal = file.with_suffix(".journal")
    text = TEMPLATE.format(
        listen=listen, admin=admin, redis=redis, journal=journal, stale_fill=stale_fill, window=window
    )
    # Unknown to versions that do not replay.
    file.write_text(text + 'replay_window = "1h"\n')
    check = subprocess.run([binary, "check", file], capture_output=True, text=True, timeout=30)
    if check.returncode and "replay_window" in check.stdout + check.stderr:
        file.write_text(text)
        check = subprocess.run([binary, "check", file], capture_output=True, text=True, timeout=30)
    if check.returncode:
        raise SystemExit(f"{binary} check {file}\n{check.stdout}{check.stderr}")
