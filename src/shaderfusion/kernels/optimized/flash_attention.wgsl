// out_i = sum_j exp(s_ij - m_i) v_j / l_i, s = q k^T / sqrt(D), m_i = max_j s_ij, l_i = sum_j exp(s_ij - m_i), exactly,
// by one pass over the keys: FlashAttention (Dao et al. 2022, arXiv 2205.14135, Algorithm 1). Per tile of keys
// m' = max(m, max_j s_ij), p = exp(s - m'), l' = exp(m - m') l + sum_j p_ij, o' = exp(m - m') o + p v; out = o / l.
// A workgroup computes QUERIES rows of one head, KEYS keys at a time: it reads them once, all keys and values that they
// see once, and writes its rows of out; s and p never leave it. Its products are of registers, or of a GPU's matrix
// units. exp(x) is exp2(x log2(e)), with log2(e) / sqrt(D) as params.scale; m is in units of q k^T.
// Row i sees keys j < min(M, i + params.diagonal).

#ifdef MATRIX_UNITS
alias Vector = vec4<u32>; // 8 values
alias Stored = vec4<u32>;
#else
alias Vector = vec4<Elem>;
alias Stored = Elem;
#endif
@group(0) @binding(1) var<storage, read> q: array<Vector>;         // (B, N, heads, D), each at its row stride
@group(0) @binding(2) var<storage, read> k: array<Vector>;         // (B, M, heads, D)
@group(0) @binding(3) var<storage, read> v: array<Vector>;         // (B, M, heads, D)
@group(0) @binding(4) var<storage, read_write> out: array<Stored>; // (B, N, heads, D)

const LOWEST = -3.4e38; // a masked score, near the lowest f32

// Keys beyond M repeat the last one; their scores are masked.
fn row_of(key: u32) -> u32 {
    return min(key, params.keys - 1);
}

#ifdef MATRIX_UNITS
#import fragments/flash_matrix
#else
#import fragments/flash_registers
#endif
