"""Read and write the common data formats, detect them, and split data without leaks."""

from afzal.data.column_requests import (
    ColumnRequest,
    column_request,
    column_values,
    columns_hash,
    merged_request,
    refuse_missing_columns,
)
from afzal.data.dataset import Dataset, fingerprint
from afzal.data.detect import ignorable_columns
from afzal.data.files import refuse_missing
from afzal.data.format import Format
from afzal.data.formats import FORMATS
from afzal.data.joining import join_votes
from afzal.data.judged_by import JUDGED_BY, judges_of, naming, naming_all, without_verdicts
from afzal.data.media_copies import share_media, with_copied_media
from afzal.data.mediafiles import MediaRules
from afzal.data.mixture import TASK, epoch, is_mixture
from afzal.data.reading import Reading
from afzal.data.remap import remap, without
from afzal.data.sources import read, stream
from afzal.data.splitting import split
from afzal.data.writing import Plan, plan, write, write_rows

__all__ = [
    "FORMATS",
    "JUDGED_BY",
    "TASK",
    "ColumnRequest",
    "Dataset",
    "Format",
    "MediaRules",
    "Plan",
    "Reading",
    "column_request",
    "column_values",
    "columns_hash",
    "epoch",
    "fingerprint",
    "ignorable_columns",
    "is_mixture",
    "join_votes",
    "judges_of",
    "merged_request",
    "naming",
    "naming_all",
    "plan",
    "read",
    "refuse_missing",
    "refuse_missing_columns",
    "remap",
    "share_media",
    "split",
    "stream",
    "with_copied_media",
    "without",
    "without_verdicts",
    "write",
    "write_rows",
]
