"""Two small Parquet files as the datasets library writes them, for tests of src/data/corpus: python make.py

The same four conversations as in chat.jsonl: nested lists compressed with snappy, in two row groups; and texts with zstd.
Written with pyarrow 26.
"""

import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

here = pathlib.Path(__file__).parent
records = [json.loads(line) for line in (here / "chat.jsonl").read_text().splitlines()]
table = pa.Table.from_pylist(records)
pq.write_table(table, here / "chat.parquet", compression="snappy", row_group_size=3)
texts = pa.table({"id": range(3), "text": ["One.", "Zwei — 二.", "Three\n\nlines."]})
pq.write_table(texts, here / "texts.parquet", compression="zstd")
pq.write_table(pa.table({"text": ["One."]}), here / "brotli.parquet", compression="brotli")
