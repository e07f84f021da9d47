"""Read a whole store and report what is damaged or lost."""

from pipeline.store.verify.check import verify
from pipeline.store.verify.scan import Damage, Verification

__all__ = ["Damage", "Verification", "verify"]
