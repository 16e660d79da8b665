"""The sequence of pictures on page 6: one step of semi-implicit back propagation, from the last layer to the first."""

from drawing import BACKWARD, BACKWARD_PALE, FORWARD, FORWARD_PALE, GREY, INK, NEW, NEW_PALE, Drawing

LAYERS = 3
TITLES = (
    "1. Forward: keep every A and Z.",
    "2. The last layer gets the target T_3 = Z_3 \N{MINUS SIGN} ηD_3 and is solved.",
    "3. D_2 has come through the new W_3. Layer 2 gets T_2 = A_2 \N{MINUS SIGN} ηD_2 and is solved.",
    "4. D_1 has come through the new W_2. Layer 1 gets T_1 = A_1 \N{MINUS SIGN} ηD_1 and is solved.",
)


def frames() -> dict[str, str]:
    """All pictures, SVG text by file name."""
    return {f"sweep-{k + 1}.svg": _frame(k) for k in range(LAYERS + 1)}


def _frame(solved: int) -> str:
    """The network when the last `solved` layers have new weights."""
    d = Drawing(840, 200, TITLES[solved].replace("_", ""))
    d.text(24, 30, TITLES[solved], anchor="start", size=15, bold=True)
    first, gap, there, back = 70, 210, 85, 150  # columns of neurons; heights of the forward and backward arrows
    for layer in range(1, LAYERS + 1):
        done, now = layer > LAYERS - solved, layer == LAYERS + 1 - solved
        middle = first + gap * (layer - 0.5)
        color = NEW if done else INK
        d.rect(middle - 36, 60, 72, 115, fill=NEW_PALE if done else "#ffffff", stroke=color, radius=6)
        d.text(middle, 120, f"new W_{layer}" if done else f"W_{layer}", size=14, color=color, bold=now and done)
        d.arrow((middle - 75, there), (middle + 75, there), color=FORWARD)
        if done and not now:  # the next layer towards the inputs gets its error signal through this one
            d.arrow((middle + 75, back), (middle - 75, back), color=BACKWARD)
            d.text(middle - 57, back - 9, f"D_{layer - 1}", size=13, color=BACKWARD, italic=True)
        if done:
            x = first + gap * layer
            d.rect(x - 24, back - 15, 48, 30, fill=BACKWARD_PALE if now else "#ffffff", stroke=BACKWARD, radius=4)
            d.text(x, back + 5, f"T_{layer}", size=14, color=BACKWARD, italic=True)
    for layer in range(LAYERS + 1):
        name = f"A_{layer}" if layer < LAYERS else f"Z_{layer}"
        d.circle(first + gap * layer, there, 25, fill=FORWARD_PALE, stroke=FORWARD)
        d.text(first + gap * layer, there + 5, name, color=FORWARD, italic=True)
    last = first + gap * LAYERS
    d.arrow((last + 30, there), (last + 85, there), color=FORWARD)
    d.text(last + 108, there + 5, "loss", size=13, color=GREY)
    if solved:
        d.arrow((last + 85, back), (last + 30, back), color=BACKWARD)
        d.text(last + 50, back - 9, f"D_{LAYERS}", size=13, color=BACKWARD, italic=True)
    return d.svg()
