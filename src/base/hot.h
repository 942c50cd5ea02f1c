/* base/hot.h - how hot loops are compiled, for every room: BW_HOT makes a clone of a function for each kind of CPU, chosen when the program is
 * loaded. */
#ifndef BREAKWATER_BASE_HOT_H
#define BREAKWATER_BASE_HOT_H

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(memory_sanitizer) || __has_feature(thread_sanitizer)
#define BW_NO_CLONES 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__x86_64__) || !defined(__ELF__)
#define BW_NO_CLONES 1
#endif

/* The choice runs while the program is being loaded, before a sanitizer is ready for it: plain code there. An OpenMP
 * region inside such a function would lose the attribute, so hot functions hold none: their callers do. Names of hot functions
 * are unique even where they are static: clang 14 exports their resolvers. */
#ifdef BW_NO_CLONES
#define BW_HOT
#elif defined(__clang__) /* clang 14 takes a level such as x86-64-v4, then asks the CPU for it in a wrong way */
#define BW_HOT __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define BW_HOT __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif

#endif
