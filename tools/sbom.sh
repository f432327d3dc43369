#!/usr/bin/env bash
# Write the software bill of materials of a virtual environment: CycloneDX JSON, checked against its schema.
# Usage: tools/sbom.sh VENV FILE. The writer is installed apart, in build/sbom, so that it does not list itself.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 file=$2 tool=build/sbom
mkdir -p build
if [ ! -x "$tool/bin/cyclonedx-py" ]; then
  "$venv/bin/python" -m venv "$tool"
  "$tool/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
    --requirement tools/sbom-requirements.lock
fi
"$tool/bin/cyclonedx-py" environment "$venv" --pyproject pyproject.toml --output-reproducible --validate \
  --output-file "$file.part"
mv "$file.part" "$file"
"$venv/bin/python" - "$file" <<'END'
import json, sys

found = json.load(open(sys.argv[1], encoding="utf-8"))
print(f"{sys.argv[1]}: CycloneDX {found['specVersion']}, {len(found['components'])} packages, valid")
END
