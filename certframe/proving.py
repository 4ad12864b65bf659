"""From counts to a certificate whose statement says what was certified in full."""

from __future__ import annotations

from dataclasses import replace

from certframe.protocols import Certificate, Certifier
from certframe.tally import Tally


def prove(certifier: Certifier, tally: Tally) -> Certificate:
    """What the certifier makes of a tally.

    Where the method holds something fixed that it has learnt from the clean image, the statement says so: a changed
    image, explained anew, would have another.

    Raises:
        UsageError: the tally is not of the kind that the certifier takes.
    """
    certificate = certifier.certify(tally)
    held = tally.identity.get("held")
    if not held:
        return certificate
    return replace(certificate, statement=f"{certificate.statement} The map is that of the method with {held} held "
                                          "fixed as it was found for the unchanged image.")
