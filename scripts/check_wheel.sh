#!/bin/sh
# Builds the source distribution and from it the wheel, installs each into a fresh environment outside the checkout, and
# trains with both in an empty folder.
# A fresh environment borrows torch and other packages from .venv, but not the editable install of the project there.
set -e
cd "$(dirname "$0")/.."
python="${PYTHON:-$PWD/.venv/bin/python}"
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
unset PYTHONPATH
mkdir "$place/source"
cp -R sibp configs setup.py pyproject.toml README.md LICENSE "$place/source"  # without an old build/

(cd "$place/source" && "$python" -c "from setuptools.build_meta import build_sdist; build_sdist('$place')" > /dev/null)
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$place" "$place"/sibp-*.tar.gz
path="$PATH"

for built in "$place"/sibp-*.tar.gz "$place"/sibp-*.whl; do
    rm -rf "$place/venv" "$place/empty"
    mkdir "$place/empty"
    "$python" -m venv --without-pip "$place/venv"
    own="$("$place/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    "$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$own/borrowed.pth"
    "$python" -m pip --python "$place/venv/bin/python" install --quiet --disable-pip-version-check --no-deps "$built"

    cd "$place/empty"
    PATH="$place/venv/bin:$path"
    echo "from $(basename "$built"):"
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
    cd "$place"
done
