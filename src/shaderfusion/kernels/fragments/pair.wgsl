// Two neighbouring values by one load or store. llvmpipe loads each component of a vector on its own, but 64 bits at once.
#ifdef INT64_PAIRS
alias Pair = u64;
fn unpack(pair: Pair) -> vec2<Elem> {
    return vec2<Elem>(bitcast<f32>(u32(pair & 0xfffffffflu)), bitcast<f32>(u32(pair >> 32u)));
}
fn pack(values: vec2<Elem>) -> Pair {
    let bits = bitcast<vec2<u32>>(values);
    return u64(bits.x) | (u64(bits.y) << 32u);
}
#else
alias Pair = vec2<Elem>;
fn unpack(pair: Pair) -> vec2<Elem> { return pair; }
#endif
