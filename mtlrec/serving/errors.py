"""What export, artefacts and predictors say no with."""


class ArtefactError(ValueError):
    """An artefact cannot be made, or used; the message says why and what to do."""
