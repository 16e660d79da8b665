"""How a layer's input, output and error signal reach the solver inside ordinary autograd."""
