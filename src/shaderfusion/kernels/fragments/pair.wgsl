// Two neighbouring values by one load. llvmpipe loads each component of a vector on its own, but 64 bits at once.
#ifdef INT64_PAIRS
alias Pair = u64;
fn unpack(pair: Pair) -> vec2<Elem> {
    return vec2<Elem>(bitcast<f32>(u32(pair & 0xfffffffflu)), bitcast<f32>(u32(pair >> 32u)));
}
#else
alias Pair = vec2<Elem>;
fn unpack(pair: Pair) -> vec2<Elem> { return pair; }
#endif
