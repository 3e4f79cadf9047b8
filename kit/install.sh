#!/bin/sh
# Installs the kit that this file is in, without a network, into a folder that is created for it:
#     sh install.sh FOLDER
#     PYTHON=/opt/python/bin/python3.11 sh install.sh FOLDER
kit=$(dirname -- "$0")
found=

# Installs with a Python that the kit has packages for; otherwise notes its version.
install_with() {
    python=$1
    shift
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || return 0
    [ -f "$kit/requirements-$version.txt" ] && exec "$python" -I "$kit/install.py" "$@"
    found="$found, $python is $version"
}

if [ -n "${PYTHON:-}" ]; then
    install_with "$PYTHON" "$@"
else
    for each in python3 python3.13 python3.12 python3.11 python3.10; do
        install_with "$each" "$@"
    done
fi
versions=
for file in "$kit"/requirements-*.txt; do
    version=${file##*/requirements-}
    versions="$versions or ${version%.txt}"
done
echo "error: this kit needs Python${versions# or}${found:+, but }${found#, }; install such a Python, or name it:" \
    "PYTHON=/path/of/python3 sh install.sh FOLDER" >&2
exit 1
