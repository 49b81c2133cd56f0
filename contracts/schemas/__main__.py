from __future__ import annotations

from contracts.schemas import FILES, FOLDER, schema_of

for name, record in FILES.items():
    (FOLDER / name).write_bytes(schema_of(record))
