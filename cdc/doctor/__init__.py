"""Every precondition, on every server, checked before anything starts; each finding with its remedy.

A check yields findings, good ones too, and raises CdcError when it cannot go on; `examine` turns that into a finding.
Nothing is changed on any server: a slot made to try the output plugin is temporary and dropped at once.
"""

from cdc.doctor.examination import examine
from cdc.doctor.finding import Finding, Level

__all__ = ["Finding", "Level", "examine"]
