"""mtlrec: multi-task recommender training on TorchRec.

Importing the package costs nothing: it pulls in neither torch nor TorchRec nor FBGEMM. Take what you need:

    from mtlrec.layers import AdaTTSp            # plain torch modules
    from mtlrec.config.file import load_config   # the YAML job
"""

__version__ = "0.1.0"
