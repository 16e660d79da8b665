#!/bin/sh
# Builds the wheel, installs it into a fresh environment outside the checkout, and trains with it in an empty folder.
# The fresh environment borrows torch and the rest from .venv, but not the editable install of the project there.
set -e
cd "$(dirname "$0")/.."
python="${PYTHON:-$PWD/.venv/bin/python}"
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
unset PYTHONPATH
mkdir "$place/source" "$place/empty"
cp -R sibp configs setup.py pyproject.toml README.md LICENSE "$place/source"  # so that no old build/ gets into it

"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$place" "$place/source"
"$python" -m venv --without-pip "$place/venv"
own="$("$place/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$own/borrowed.pth"
"$python" -m pip --python "$place/venv/bin/python" install --quiet --disable-pip-version-check --no-deps "$place"/sibp-*.whl

cd "$place/empty"
PATH="$place/venv/bin:$PATH"
python -c "
import sibp, sibp.experiment.compose as compose
for path in (sibp.__file__, compose.CONFIGS):
    assert str(path).startswith('$place/venv/'), path
"
sibp --version
sibp train experiment=digits_quick threads=1
sibp tune sweep=digits_quick threads=1 --dry > tune.txt
sibp report runs
python -m sibp.train experiment=digits_quick threads=1  # skipped: the same run
ls report.html tune.txt
