"""The floor of a decoding step: the bytes of weights that it reads over the speed at which this machine reads as many.

    python benchmarks/bandwidth.py artifacts/en-de/int8/decoder.onnx --threads 1,2

Reading is measured with NumPy: each thread takes the maximum of its own share of a buffer of that size, again and again, the whole buffer
once a pass; the median pass counts. A buffer that fits a cache is read from there, as the weights are in step after step.
"""

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
import onnx

ROWS_ONLY = ("Gather", "GatherBlockQuantized")  # read a row of their first input for each index


def weight_bytes(decoder: Path, rows: int = 1) -> int:
    """Bytes of initializers that a step of one token for `rows` rows reads; tables of embeddings count the rows taken from them."""
    graph = onnx.load(decoder, load_external_data=False).graph
    read: dict[str, float] = {}
    for node in _nodes(graph):
        for place, name in enumerate(node.input):
            lookup = node.op_type in ROWS_ONLY and place != 1  # a table, or its scales and zero points
            read[name] = max(read.get(name, 0.0), rows if lookup else float("inf"))
    total = 0
    for tensor in graph.initializer:
        if tensor.name in read and tensor.dims and all(tensor.dims):
            size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * int(np.prod(tensor.dims))
            total += int(min(1.0, read[tensor.name] / tensor.dims[0]) * size)
    return total


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of branches and bodies too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def read_speed(size: int, threads: int, seconds: float = 0.5) -> float:
    """Bytes a second of reading `size` bytes with `threads` threads."""
    parts = [np.ones(max(1, size // 8 // threads), np.int64) for _ in range(threads)]
    passes: list[float] = []
    with ThreadPoolExecutor(threads) as pool:
        ends = time.perf_counter() + seconds
        while time.perf_counter() < ends or len(passes) < 5:
            started = time.perf_counter()
            list(pool.map(np.max, parts))
            passes.append(time.perf_counter() - started)
    return sum(part.nbytes for part in parts) / statistics.median(passes[1:])


@click.command(help=__doc__)
@click.argument("decoder", type=click.Path(exists=True, path_type=Path))
@click.option("--threads", default="1,2", show_default=True)
def main(decoder: Path, threads: str) -> None:
    size = weight_bytes(decoder)
    for count in map(int, threads.split(",")):
        speed = read_speed(size, count)
        click.echo(f"{size / 1e6:.1f} MB a step, {speed / 1e9:.1f} GB/s on {count} threads: at most {speed / size:.0f} steps/s")


if __name__ == "__main__":
    main()
