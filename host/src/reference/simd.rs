//! One source, two machine codes: a function compiled for the baseline CPU and for AVX2 with FMA.

/// Defines functions whose body is also compiled for AVX2 + FMA and chosen when the CPU has both.
///
/// The results do not depend on the choice: Rust never contracts or reorders float operations, and
/// `mul_add` rounds once everywhere (without the instruction it is a slow library call, which is why
/// the choice exists).
macro_rules! vectorized {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? $body:block)*) => {$(
        $(#[$meta])*
        $vis fn $name($($arg: $type),*) $(-> $out)? {
            #[inline(always)]
            fn portable($($arg: $type),*) $(-> $out)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn wide($($arg: $type),*) $(-> $out)? {
                    portable($($arg),*)
                }
                if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
                    // SAFETY: the CPU has the features that `wide` is compiled for.
                    return unsafe { wide($($arg),*) };
                }
            }
            portable($($arg),*)
        }
    )*};
}
