// 4 neighbouring values of a tensor, as memory holds them.
#import fragments/pair

#ifdef INT64_PAIRS
alias Vector = array<Pair, 2>;
fn widen(vector: Vector) -> vec4<f32> { return vec4<f32>(unpack(vector[0]), unpack(vector[1])); }
fn narrow(values: vec4<f32>) -> Vector { return Vector(pack(values.xy), pack(values.zw)); }
#else
alias Vector = vec4<Elem>;
fn widen(vector: Vector) -> vec4<f32> { return vec4<f32>(vector); }
fn narrow(values: vec4<f32>) -> Vector { return Vector(values); }
#endif
