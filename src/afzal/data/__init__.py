"""Read and write the common data formats, detect them, and split data without leaks."""

from afzal.data.asked import Asked, asked_by, columns_hash, columns_of, refuse_lacking, union_of
from afzal.data.beside import with_media_beside
from afzal.data.dataset import Dataset, fingerprint
from afzal.data.detect import passed_over
from afzal.data.files import refuse_missing
from afzal.data.format import Format
from afzal.data.formats import FORMATS
from afzal.data.joining import together
from afzal.data.mediafiles import MediaRules
from afzal.data.mixture import TASK, epoch, is_mixture
from afzal.data.reading import Reading
from afzal.data.remap import remap, without
from afzal.data.sources import read, stream
from afzal.data.splitting import split
from afzal.data.writing import Plan, plan, write, write_rows

__all__ = [
    "FORMATS",
    "TASK",
    "Asked",
    "Dataset",
    "Format",
    "MediaRules",
    "Plan",
    "Reading",
    "asked_by",
    "columns_hash",
    "columns_of",
    "epoch",
    "fingerprint",
    "is_mixture",
    "passed_over",
    "plan",
    "read",
    "refuse_lacking",
    "refuse_missing",
    "remap",
    "split",
    "stream",
    "together",
    "union_of",
    "with_media_beside",
    "without",
    "write",
    "write_rows",
]
