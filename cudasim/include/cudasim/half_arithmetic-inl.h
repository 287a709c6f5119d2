// Arithmetic of CUDASIM_TYPE and CUDASIM_PAIR, included once for each: every operation is rounded
// once. A product or a sum of two halves is exact in fp64 and all but exact in fp32, whose second
// rounding cannot be seen (24 bits are more than twice 11 and two).

inline CUDASIM_TYPE __hadd(CUDASIM_TYPE a, CUDASIM_TYPE b) { return float(a) + float(b); }
inline CUDASIM_TYPE __hsub(CUDASIM_TYPE a, CUDASIM_TYPE b) { return float(a) - float(b); }
inline CUDASIM_TYPE __hmul(CUDASIM_TYPE a, CUDASIM_TYPE b) { return float(a) * float(b); }
inline CUDASIM_TYPE __hdiv(CUDASIM_TYPE a, CUDASIM_TYPE b) { return float(a) / float(b); }
inline CUDASIM_TYPE __hfma(CUDASIM_TYPE a, CUDASIM_TYPE b, CUDASIM_TYPE c) {
  return __builtin_fmaf(float(a), float(b), float(c));
}
inline CUDASIM_TYPE __hneg(CUDASIM_TYPE a) { return -float(a); }
inline CUDASIM_TYPE __habs(CUDASIM_TYPE a) { return __builtin_fabsf(float(a)); }
inline CUDASIM_TYPE __hmax(CUDASIM_TYPE a, CUDASIM_TYPE b) {
  return __builtin_fmaxf(float(a), float(b));
}
inline CUDASIM_TYPE __hmin(CUDASIM_TYPE a, CUDASIM_TYPE b) {
  return __builtin_fminf(float(a), float(b));
}
inline bool __heq(CUDASIM_TYPE a, CUDASIM_TYPE b) { return float(a) == float(b); }
inline bool __hlt(CUDASIM_TYPE a, CUDASIM_TYPE b) { return float(a) < float(b); }
inline bool __hgt(CUDASIM_TYPE a, CUDASIM_TYPE b) { return float(a) > float(b); }
inline bool __hisnan(CUDASIM_TYPE a) { return __builtin_isnan(float(a)); }

inline CUDASIM_TYPE operator+(const CUDASIM_TYPE& a, const CUDASIM_TYPE& b) { return __hadd(a, b); }
inline CUDASIM_TYPE operator-(const CUDASIM_TYPE& a, const CUDASIM_TYPE& b) { return __hsub(a, b); }
inline CUDASIM_TYPE operator*(const CUDASIM_TYPE& a, const CUDASIM_TYPE& b) { return __hmul(a, b); }
inline CUDASIM_TYPE operator/(const CUDASIM_TYPE& a, const CUDASIM_TYPE& b) { return __hdiv(a, b); }
inline CUDASIM_TYPE operator-(const CUDASIM_TYPE& a) { return __hneg(a); }
inline CUDASIM_TYPE& operator+=(CUDASIM_TYPE& a, const CUDASIM_TYPE& b) { return a = a + b; }
inline CUDASIM_TYPE& operator-=(CUDASIM_TYPE& a, const CUDASIM_TYPE& b) { return a = a - b; }
inline CUDASIM_TYPE& operator*=(CUDASIM_TYPE& a, const CUDASIM_TYPE& b) { return a = a * b; }
inline bool operator==(const CUDASIM_TYPE& a, const CUDASIM_TYPE& b) { return __heq(a, b); }
inline bool operator!=(const CUDASIM_TYPE& a, const CUDASIM_TYPE& b) { return !__heq(a, b); }
inline bool operator<(const CUDASIM_TYPE& a, const CUDASIM_TYPE& b) { return __hlt(a, b); }
inline bool operator>(const CUDASIM_TYPE& a, const CUDASIM_TYPE& b) { return __hgt(a, b); }
inline bool operator<=(const CUDASIM_TYPE& a, const CUDASIM_TYPE& b) {
  return float(a) <= float(b);
}
inline bool operator>=(const CUDASIM_TYPE& a, const CUDASIM_TYPE& b) {
  return float(a) >= float(b);
}

inline CUDASIM_PAIR __hadd2(CUDASIM_PAIR a, CUDASIM_PAIR b) { return {a.x + b.x, a.y + b.y}; }
inline CUDASIM_PAIR __hsub2(CUDASIM_PAIR a, CUDASIM_PAIR b) { return {a.x - b.x, a.y - b.y}; }
inline CUDASIM_PAIR __hmul2(CUDASIM_PAIR a, CUDASIM_PAIR b) { return {a.x * b.x, a.y * b.y}; }
inline CUDASIM_PAIR __hfma2(CUDASIM_PAIR a, CUDASIM_PAIR b, CUDASIM_PAIR c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
inline CUDASIM_PAIR __hmax2(CUDASIM_PAIR a, CUDASIM_PAIR b) {
  return {__hmax(a.x, b.x), __hmax(a.y, b.y)};
}

namespace cudasim {
template <>
inline constexpr bool kShuffles<CUDASIM_TYPE> = true;
template <>
inline constexpr bool kShuffles<CUDASIM_PAIR> = true;
}  // namespace cudasim
