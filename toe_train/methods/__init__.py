"""Methods: how training is made cheaper.

method.py           the interface of all of them, which does nothing
token_expansion.py  the paper's: tokens are dropped and merged while training (ToE), or dropped at random
token_merging.py    ToMe: r tokens fewer in every block; merging_block.py is the block
depth_growth.py     NetworkExpansion and StackBERT: fewer blocks at first
structured_sparsity.py  S2ViTE: a part of the heads and hidden units is off; mask_update.py says which ones next, and
                        sparse_parts.py computes what is on alone and takes the heads' scores
pictures.py         what Token Expansion keeps, as pictures

The loop and the step name none of them; `build/method.py` makes the one that a configuration asks for. A new method is
one file here, beside its section in `recipes/methods.py`.
"""
