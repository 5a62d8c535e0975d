"""Errors of the data pipeline that its users can mend."""


class DataError(ValueError):
    """Input or prepared data that cannot be used; the message says what is wrong and what to do."""


class BusyError(DataError):
    """Another process is at the same job."""


class WorkerError(DataError):
    """A job that cannot go on for reasons outside its data; what it has done is kept."""


class RowError(ValueError):
    """A row that cannot become a record; `reason` is a short phrase that can be counted."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class PromptError(DataError):
    """A conversation that cannot become a prompt; `reason` is a short phrase that can be counted."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason
