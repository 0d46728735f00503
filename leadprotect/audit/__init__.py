"""For auditors: sealing the record, verifying it, exporting it, and asking it who could edit what."""
