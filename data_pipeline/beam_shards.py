"""The Apache Beam side of data_pipeline.shards (extra `[beam]`)."""

from collections.abc import Iterator

import apache_beam as beam

from data_pipeline.shards import ShardJob, Worker


class MakeShard(beam.DoFn):
    """Chunk number → its shards, in a process of its own, so that no molecule can take a Beam worker down."""

    def __init__(self, job: str):
        self._job = job

    def setup(self) -> None:
        """Called once for each Beam worker."""
        self._worker = Worker()

    def process(self, chunk: int) -> Iterator[int]:
        """Writes the shards; yields the chunk's number."""
        self._worker.run(ShardJob.from_json(self._job), chunk)
        yield chunk

    def teardown(self) -> None:
        """Called when a Beam worker ends."""
        self._worker.close()
