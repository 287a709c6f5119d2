#!/usr/bin/env python3
"""Writes wgmma_shapes-inl.cuh: one overload of wgmma_ss and wgmma_rs for each N.

The accumulator of m64nN is N/2 registers a thread, which inline assembly wants named one by one.
"""

SS = (48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 256)  # both operands in shared memory
RS = (64, 128)  # A in registers


def first(n):
    """The step that starts a sum: the accumulators' old values are no input."""
    count = n // 2
    accumulators = ", ".join(f"%{i}" for i in range(count))
    outputs = ", ".join(f'"=f"(d[{i}])' for i in range(count))
    return f"""template <int kTransA, int kTransB>
__device__ __forceinline__ void wgmma_ss_first(float (&d)[{count}], uint64_t a, uint64_t b) {{
  asm volatile(
      "{{ .reg .pred p; setp.ne.b32 p, 0, 0;\\n"
      "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{accumulators}}}, %{count}, %{count + 1}, p, 1, 1, %{count + 2}, %{count + 3}; }}\\n"
      : {outputs}
      : "l"(a), "l"(b), "n"(kTransA), "n"(kTransB));
}}
"""


def body(n, registers_a):
    count = n // 2
    accumulators = ", ".join(f"%{i}" for i in range(count))
    if registers_a:
        a = "{" + ", ".join(f"%{count + i}" for i in range(4)) + "}"
        rest = count + 4
        tail = f"p, 1, 1, %{rest + 2}"
    else:
        a = f"%{count}"
        rest = count + 1
        tail = f"p, 1, 1, %{rest + 2}, %{rest + 3}"
    outputs = ", ".join(f'"+f"(d[{i}])' for i in range(count))
    if registers_a:
        inputs = ", ".join(f'"r"(a[{i}])' for i in range(4)) + ', "l"(b), "r"(accumulate), "n"(kTransB)'
        head = (
            f"template <int kTransB>\n__device__ __forceinline__ void wgmma_rs(float (&d)[{count}], "
            "const uint32_t* a, uint64_t b, int accumulate) {"
        )
    else:
        inputs = '"l"(a), "l"(b), "r"(accumulate), "n"(kTransA), "n"(kTransB)'
        head = (
            f"template <int kTransA, int kTransB>\n__device__ __forceinline__ void wgmma_ss(float (&d)[{count}], "
            "uint64_t a, uint64_t b, int accumulate) {"
        )
    return f"""{head}
  asm volatile(
      "{{ .reg .pred p; setp.ne.b32 p, %{rest + 1}, 0;\\n"
      "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{accumulators}}}, {a}, %{rest}, {tail}; }}\\n"
      : {outputs}
      : {inputs});
}}
"""


with open("wgmma_shapes-inl.cuh", "w") as out:
    out.write("// Written by wgmma_shapes.py; included by wgmma.cuh alone.\n// clang-format off\n")
    for n in SS:
        out.write(body(n, False))
        out.write(first(n))
    for n in RS:
        out.write(body(n, True))
    out.write("// clang-format on\n")
