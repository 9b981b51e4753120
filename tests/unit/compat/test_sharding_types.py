"""The stock sharder still offers no row-wise sharding on CPU. tests/distributed/test_sharding.py trains with ours."""

from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder

from mtlrec.compat.sharding_types import BY_ROWS, TableSharder


def test_the_stock_sharder_leaves_out_row_wise_sharding_on_cpu() -> None:
    stock = EmbeddingBagCollectionSharder().sharding_types("cpu")
    assert not set(BY_ROWS) <= set(stock), "compat/sharding_types.py can be deleted"
    assert set(TableSharder().sharding_types("cpu")) == set(stock) | set(BY_ROWS)
