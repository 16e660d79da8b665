"""Back propagation and semi-implicit back propagation from scratch in NumPy, as `docs/tutorial` builds them.

For reading and checking, not for training: `sibp.SIBP` takes the same steps, faster and for any model.
"""
