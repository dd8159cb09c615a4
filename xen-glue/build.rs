//! Binds the headers of Xen's tools libraries that are installed here. Nothing is linked: the
//! libraries are opened at run time (see `src/library`).

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "xen")]
    bind::all();
}

#[cfg(feature = "xen")]
mod bind {
    use std::path::PathBuf;

    /// One library: its module, its headers, and what is used of it.
    struct Library {
        module: &'static str,
        name: &'static str,
        headers: &'static str,
        functions: &'static str,
        variables: &'static str,
    }

    const LIBRARIES: [Library; 5] = [
        Library {
            module: "control",
            name: "Control",
            // The batch of page types is exported and not declared.
            headers: "#include <xenctrl.h>\n#include <xen/hvm/params.h>\n#include <xen/sched.h>\n\
                      int xc_get_pfn_type_batch(xc_interface *xch, uint32_t dom, unsigned int num, xen_pfn_t *arr);\n\
                      #define ROMULUS_PAGE_NOT_THERE XEN_DOMCTL_PFINFO_XTAB\n",
            functions: "xc_interface_(open|close)|xc_version|xc_physinfo|xc_domain_(getinfolist|pause|unpause|destroy|\
                        hvm_getcontext|hvm_setcontext|nr_gpfns|get_tsc_info|set_tsc_info|subscribe_for_suspend)|\
                        xc_hvm_param_(get|set)|xc_shadow_control|xc_logdirty_control|xc_evtchn_alloc_unbound|\
                        xc__hypercall_buffer_(alloc|free)_pages|xc_get_pfn_type_batch",
            variables: "XENVER_.*|HVM_PARAM_.*|SHUTDOWN_.*|XEN_DOMINF_.*|XEN_DOMCTL_SHADOW_OP_.*|\
                        XEN_DOMCTL_PFINFO_.*|ROMULUS_.*",
        },
        Library {
            module: "guest",
            name: "Guest",
            headers: "#include <xenctrl.h>\n#include <xenguest.h>\n",
            functions: "xc_domain_resume|xc_cpu_policy_(init|destroy|get_domain|serialise|get_size)",
            variables: "",
        },
        Library {
            module: "memory",
            name: "ForeignMemory",
            headers: "#include <xenforeignmemory.h>\n",
            functions: "xenforeignmemory_(open|close|map|unmap)",
            variables: "",
        },
        Library {
            module: "events",
            name: "Events",
            headers: "#include <xenevtchn.h>\n",
            functions: "xenevtchn_(open|close|fd|notify|bind_interdomain|pending|unmask)",
            variables: "",
        },
        Library {
            module: "store",
            name: "Store",
            headers: "#include <xenstore.h>\n",
            functions: "xs_(open|close|read|write|rm|directory|transaction_start|transaction_end|resume_domain)",
            variables: "",
        },
    ];

    pub fn all() {
        let version = match pkg_config::Config::new().cargo_metadata(false).probe("xencontrol") {
            Ok(library) => library.version,
            Err(error) => {
                println!(
                    "cargo::error=the headers of Xen's tools libraries are not installed (Debian: libxen-dev); \
                     install them, or build without the feature `xen` (cargo build -p romulus \
                     --no-default-features --features rdma): {error}"
                );
                return;
            }
        };
        let mut parts = version.split('.');
        let (major, minor) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        println!("cargo::rustc-env=ROMULUS_XEN_VERSION={major}.{minor}");
        let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo says where the output goes"));
        for library in LIBRARIES {
            library
                .bind()
                .write_to_file(out.join(format!("{}.rs", library.module)))
                .expect("OUT_DIR is writable");
        }
    }

    impl Library {
        fn bind(&self) -> bindgen::Bindings {
            bindgen::Builder::default()
                .header_contents(&format!("{}.h", self.module), self.headers)
                .clang_arg("-D__XEN_TOOLS__")
                .allowlist_function(self.functions)
                .allowlist_var(self.variables)
                .dynamic_library_name(self.name)
                .dynamic_link_require_all(true)
                .generate_comments(false)
                .derive_default(true)
                .layout_tests(false)
                .wrap_unsafe_ops(true)
                .generate()
                .unwrap_or_else(|error| panic!("binding {}: {error}", self.module))
        }
    }
}
