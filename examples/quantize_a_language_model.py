"""Quantize a small language model, to 4-bit weights and 8-bit activations, and let it speak."""

import zoo

quantizer = zoo.load("mobilequant")
rounded = quantizer.quantize("tiny-lm", scheme="w4a8", recipe="rtn").report()
learned = quantizer.quantize("tiny-lm", scheme="w4a8", steps=30).report()

print(f"rounded   says what the original says at {100 * rounded['agreement']:.1f} % of positions")
print(f"learned   says what the original says at {100 * learned['agreement']:.1f} % of positions")
for who, words in learned["sample"].items():
    print(f"{who:10}{' '.join(words.split())}")
