#!/usr/bin/env python3
"""How far products of f16 pairs are from f64, as parts of the bar of docs/numerics.md: the figures of
docs/decisions/0007-f16-pairs-for-f32.md.

    python3 scripts/split_operands.py

A is 64 x K, B is K x 64. Each is scaled by a power of two and split into two numbers of f16, or rounded to one. Sums of 16
products are exact and then f32, as a matrix unit does it, rounded to the nearest or cut off. Needs NumPy and no device.
"""

import numpy as np

EPSILON = 2.0**-23
UNIT = 16


def f16(x):
    return x.astype(np.float16).astype(np.float64)


def split(x):
    """High and low part, and the scale of both."""
    scale = 2.0 ** (14 - np.floor(np.log2(np.abs(x).max())))
    high = f16(x * scale)
    return high, f16((x * scale - high) * 2048) / 2048, scale


def summed(terms, cut=False):
    """The sum of products of pairs of matrices, in f32, `UNIT` of K at a time."""
    total = np.zeros((terms[0][0].shape[0], terms[0][1].shape[1]), np.float32)
    for k in range(0, terms[0][0].shape[1], UNIT):
        for a, b in terms:
            exact = total.astype(np.float64) + a[:, k : k + UNIT] @ b[k : k + UNIT]
            total = exact.astype(np.float32)
            if cut:
                beyond = np.abs(total.astype(np.float64)) > np.abs(exact)
                total = np.where(beyond, np.nextafter(total, np.float32(0)), total)
    return total.astype(np.float64)


def in_f32(a, b):
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for k in range(a.shape[1]):
        total = (total.astype(np.float64) + a[:, k : k + 1] * b[k : k + 1]).astype(np.float32)
    return total.astype(np.float64)


def main():
    rng = np.random.default_rng(1)
    draws = {
        "normal": rng.standard_normal,
        "normal times e^(3 normal)": lambda size: rng.standard_normal(size) * np.exp(3 * rng.standard_normal(size)),
    }
    for name, draw in draws.items():
        for k in (576, 1536, 4096):
            a, b = (draw(size).astype(np.float32).astype(np.float64) for size in ((64, k), (k, 64)))
            right = a @ b
            bar = 16 * EPSILON * np.sqrt(k) * np.sqrt((right * right).mean())
            (ah, al, sa), (bh, bl, sb) = split(a), split(b)
            three = [(al, bh), (ah, bl), (ah, bh)]
            results = {
                "f32": in_f32(a, b),
                "f16": summed([(ah, bh)]) / (sa * sb),
                "three, nearest": summed(three) / (sa * sb),
                "three, cut off": summed(three, cut=True) / (sa * sb),
                "two": summed([(al, bh), (ah, bh)]) / (sa * sb),
            }
            print(f"{name}, K {k}")
            for what, result in results.items():
                error = result - right
                largest, mean = np.abs(error).max() / bar, np.sqrt((error * error).mean()) / (bar / 2)
                print(f"    {what:<16} {largest:8.2f} {mean:8.2f}")


if __name__ == "__main__":
    main()
