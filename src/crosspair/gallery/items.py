"""The columns of `items.parquet`, in the order of `Item`'s fields."""

import pyarrow as pa

SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("path", pa.string()),
        ("split", pa.string()),
        ("data_row", pa.int64()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),
        ("label", pa.int64()),
        ("captions", pa.list_(pa.string())),
    ]
)
