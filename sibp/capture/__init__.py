"""How a layer's input, output and difference reach the solver inside ordinary autograd."""
