# Copyright 2026 the Breakwater authors. SPDX-License-Identifier: Apache-2.0
"""Spack recipe, for Spack 1.0 or newer: put this file into packages/breakwater/ of a repository of your own (docs/install.md)."""

from spack_repo.builtin.build_systems.cmake import CMakePackage

from spack.package import *


class Breakwater(CMakePackage):
    """Fine-tuning that keeps a language model safe: Buffer-and-Reinforce as an MPI batch job in C."""

    # Set `git` to where you cloned Breakwater from, or build the folder at hand with `spack dev-build`.
    homepage = "https://arxiv.org/abs/2605.24550"
    git = "file:///path/to/breakwater"

    license("Apache-2.0")

    version("main", branch="main")

    variant("onednn", default=False, description="products with oneDNN 2.x: bf16 where the CPU has AMX or AVX512-BF16, fp32 where it has AVX512")
    variant("tests", default=False, description="Build the tests and benchmarks")

    depends_on("c", type="build")
    depends_on("cmake@3.25:", type="build")
    depends_on("pkgconfig", type="build")
    depends_on("random123", type="build")
    depends_on("cmocka", type="build", when="+tests")

    depends_on("mpi@3:")
    depends_on("hdf5+mpi")
    # BLIS is called directly; ScaLAPACK and LAPACK may stand on any BLAS.
    depends_on("blis threads=openmp +cblas")
    depends_on("scalapack")
    depends_on("lapack")
    depends_on("jansson")
    depends_on("libyaml")
    depends_on("pcre2")
    depends_on("utf8proc")
    depends_on("xxhash")
    depends_on("onednn@2.0:2 cpu_runtime=omp", when="+onednn")

    def cmake_args(self):
        spec = self.spec
        return [
            self.define_from_variant("BUILD_TESTING", "tests"),
            self.define_from_variant("BW_ONEDNN", "onednn"),
            self.define("SCALAPACK_LIBRARY", spec["scalapack"].libs[0]),
            self.define("LAPACK_LIBRARY", spec["lapack"].libs[0]),
            self.define("BLIS_LIBRARY", spec["blis"].libs[0]),
            self.define("BLIS_INCLUDE_DIR", join_path(spec["blis"].prefix.include, "blis")),
            self.define("RANDOM123_INCLUDE_DIR", spec["random123"].prefix.include),
        ]

    @run_after("install")
    @on_package_attributes(run_tests=True)
    def check_install(self):
        Executable(self.prefix.bin.breakwater)("--version")
