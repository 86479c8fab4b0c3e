//! The GPU path against the CPU path, bit for bit.
//!
//! The tests of `device` run on whatever GPU the driver finds, and are ignored by default: `make test-gpu` runs them on a real
//! one. Here they run on a libcuda whose GPU is this host (tests/simt): the real backend, the real driver calls, the kernels'
//! own source, in different orders of threads, with shared memory of different sizes, and under AddressSanitizer.

mod common;

use common::{analytic, fixture, network, root, simulation, with_adapter};
use diffusim::adapter::Adapter;
use diffusim::backend::cuda::Evaluator;
use diffusim::backend::{Device, MatmulPrecision};
use diffusim::cell::Cell;
use diffusim::model::{Frames, Model, Outputs, Scratch};
use diffusim::sampler::{Options, Simulation, StepSize};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

/// Build tests/simt/libcuda.cpp into a folder of its own.
fn host_driver(name: &str, flags: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let built = Command::new(std::env::var("CXX").unwrap_or("g++".into()))
        .args(["-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"])
        .args(flags)
        .args(["-Wl,-soname,libcuda.so.1", "-I"])
        .arg(root.join("kernels"))
        .arg(root.join("tests/simt/libcuda.cpp"))
        .arg("-o")
        .arg(folder.join("libcuda.so.1"))
        .status()
        .unwrap();
    assert!(built.success(), "tests/simt/libcuda.cpp does not compile");
    folder
}

/// Run tests of this file in another process, with the driver in `folder`.
fn with_driver(folder: &Path, tests: &str, settings: &[(&str, &str)]) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--nocapture", "--test-threads=1", tests])
        .env("LD_LIBRARY_PATH", folder)
        .envs(settings.iter().copied())
        .output()
        .unwrap()
}

fn assert_passes(folder: &Path, settings: &[(&str, &str)]) {
    let output = with_driver(folder, "device::", settings);
    let text = [output.stdout, output.stderr].map(|t| String::from_utf8_lossy(&t).into_owned()).concat();
    assert!(
        output.status.success() && text.contains("test device::"),
        "{settings:?}: {}\n{text}",
        output.status
    );
}

/// Of the small network at two noise levels.
fn blend(lambda: f64) -> Arc<Model> {
    let other = Model::load(&fixture("distance_small.safetensors"), Some(0.005)).unwrap();
    Arc::new(Model::blend(&network(), &Arc::new(other), lambda).unwrap())
}

/// With or without a GPU: nothing of the driver is looked for before.
#[test]
fn what_has_no_kernel_is_refused_by_name() {
    let free = |_: &[f64], scores: &mut [f64], _: Option<&mut [f64]>| {
        scores.fill(0.0);
        Ok(())
    };
    let options = Options {
        device: "cuda:1".into(),
        step_size: StepSize::EffectiveStep(1e-9),
        allow_unstable: true,
        ..Options::default()
    };
    let refusal = |model: &Arc<Model>, options: &Options| {
        Simulation::new(model.clone(), options.clone()).err().unwrap().to_string()
    };
    let sentence = |what: &str| format!("device 'cuda:1' has no kernel for {what}; use device 'cpu'");
    for (model, what) in [
        (Model::callback(2, 300.0, Box::new(free)), "scores that the caller computes"),
        (Model::blend(&blend(0.3), &network(), 0.3), "blends of blends"),
    ] {
        let model = Arc::new(model.unwrap());
        assert_eq!(refusal(&model, &options), sentence(what));
        let evaluator = Evaluator::new(model.score().clone(), None, 1, 1, None);
        assert_eq!(evaluator.err().unwrap().to_string(), sentence(what));
    }
}

/// With or without a GPU, too.
#[test]
fn tensor_cores_are_refused_where_there_are_none() {
    let refusal = |model: &Arc<Model>, device: &str| {
        let options = Options {
            device: device.into(),
            matmul_precision: MatmulPrecision::High,
            step_size: StepSize::EffectiveStep(1e-9),
            ..Options::default()
        };
        Simulation::new(model.clone(), options).err().unwrap().to_string()
    };
    for device in ["cpu", "auto"] {
        let sentence = format!(
            "matmul_precision 'high' is for the tensor cores of GPUs and device is '{device}'; expected device 'cuda', or 'cuda:1' \
             and so on, else matmul_precision 'highest'"
        );
        assert_eq!(refusal(&network(), device), sentence);
    }
    let messages = Arc::new(Model::load(&fixture("message_passing_open.safetensors"), None).unwrap());
    for model in [messages, analytic("harmonic", 2, 300.0, json!({"stiffness": 37.0}))] {
        let sentence =
            "matmul_precision 'high' serves models of kind distance, and this is none; use 'highest'";
        assert_eq!(refusal(&model, "cuda"), sentence);
    }
    assert_eq!(MatmulPrecision::parse("highest"), Ok(MatmulPrecision::Highest));
    assert_eq!(MatmulPrecision::parse("high"), Ok(MatmulPrecision::High));
}

/// Build tests/simt/test_simt.cpp, whose argument names a kernel that must fail.
#[test]
fn the_host_runs_kernels_as_a_gpu_does() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/simt/test_simt.cpp");
    let folder = tempfile::tempdir().unwrap();
    for flags in [&[][..], &["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]] {
        let program = folder.path().join("test_simt");
        let built = Command::new(std::env::var("CXX").unwrap_or("g++".into()))
            .args(["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror"])
            .args(flags)
            .args([source.as_path(), Path::new("-o"), &program])
            .status()
            .unwrap();
        assert!(built.success());
        let output = Command::new(&program).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for (kernel, sentence) in [
            (
                "half_at_a_barrier",
                "simt: some threads wait at a barrier that others do not reach in block 0 of 1",
            ),
            (
                "not_in_its_mask",
                "simt: a lane calls a warp operation whose mask leaves it out in block 0 of 1",
            ),
            ("unaligned_tile", "simt: a tile of a tensor core is not aligned in block 0 of 1"),
            ("unlike_tiles", "simt: the lanes of a warp do not name the same tile in block 0 of 1"),
        ] {
            let output = Command::new(&program).arg(kernel).output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && text.contains(sentence), "{kernel}: {text}");
        }
    }
}

#[test]
fn trajectories_on_the_host_driver_have_the_bits_of_the_cpu() {
    let folder = host_driver("simt", &[]);
    assert_passes(&folder, &[]);
    // Other orders of threads, and a part with one multiprocessor.
    assert_passes(
        &folder,
        &[("SIMT_SEED", "77"), ("SIMT_MULTIPROCESSORS", "1"), ("DIFFUSIM_CUDA_GRAPHS", "0")],
    );
    // The work space in global memory; shared memory for some layers; for all layers, and many multiprocessors.
    assert_passes(&folder, &[("SIMT_SEED", "5"), ("SIMT_SHARED_BYTES", "1024")]);
    assert_passes(
        &folder,
        &[("SIMT_SEED", "6"), ("SIMT_SHARED_BYTES", "232448"), ("SIMT_MULTIPROCESSORS", "132")],
    );
    assert_passes(&folder, &[("SIMT_SEED", "7"), ("SIMT_SHARED_BYTES", "1000000")]);
}

#[test]
fn the_host_driver_is_clean_under_sanitizers() {
    let folder =
        host_driver("simt-sanitized", &["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]);
    let runtime = Command::new("g++").arg("-print-file-name=libasan.so").output().unwrap().stdout;
    let runtime = String::from_utf8(runtime).unwrap();
    let settings = [
        ("LD_PRELOAD", runtime.trim()),
        ("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0"),
        ("SIMT_SEED", "3"),
        ("SIMT_MULTIPROCESSORS", "1"),
    ];
    let output = with_driver(&folder, "device::kernels_", &settings);
    let text = [output.stdout, output.stderr].map(|t| String::from_utf8_lossy(&t).into_owned()).concat();
    assert!(output.status.success() && text.contains("test device::kernels_"), "{}\n{text}", output.status);
}

/// What is said where a GPU cannot be used: the sentence of the last line that names a device.
#[test]
fn a_gpu_that_cannot_be_used_is_a_sentence() {
    let folder = host_driver("simt-sentences", &[]);
    let empty = tempfile::tempdir().unwrap();
    for (settings, sentence) in [
        (&[("SIMT_DEVICES", "0")][..], "device 'cuda:0' is not there: this machine has no GPU"),
        (&[("SIMT_INIT", "100")], "does not start (CUDA_ERROR_NO_DEVICE); look at nvidia-smi"),
        (&[("SIMT_INIT", "34")], "does not start (CUDA_ERROR_STUB_LIBRARY)"),
        (&[("SIMT_DRIVER", "11040")], "NVIDIA's driver is for CUDA 11.4; expected 12.0 or later"),
        (&[("SIMT_CAPABILITY", "61")], "compute capability 6.1; expected 7.0 (Volta) or later"),
        (
            &[("SIMT_MEMORY", "2000")],
            "failed while allocating its memory: CUDA_ERROR_OUT_OF_MEMORY; use fewer replicas",
        ),
        (
            &[("DIFFUSIM_TEST_DEVICE", "cuda:3")],
            "device 'cuda:3' is not there: this machine has one GPU, 'cuda:0'",
        ),
        (&[("DIFFUSIM_TEST_DEVICE", "cuda:3"), ("SIMT_DEVICES", "3")], "has 3 GPUs, 'cuda:0' to 'cuda:2'"),
    ] {
        let output = with_driver(&folder, "sentence::of_a_simulation", settings);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains(sentence), "{settings:?}: {text}");
    }
    // A machine with a driver of its own has it found there.
    let output = with_driver(empty.path(), "sentence::of_a_simulation", &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    let expected = "device 'cuda:0' needs NVIDIA's driver, and there is no libcuda on this machine";
    assert!(output.status.success() && (text.contains(expected) || text.contains("no error")), "{text}");
    let output = with_driver(&folder, "sentence::of_a_failed_launch", &[("SIMT_FAIL_LAUNCH", "3")]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && text.contains("while taking steps: CUDA_ERROR_LAUNCH_FAILED"),
        "{text}"
    );
    let not_recorded = ("SIMT_CAPTURE", "900");
    for (settings, sentence) in [
        (
            &[not_recorded][..],
            "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED; set DIFFUSIM_CUDA_GRAPHS=0, and they are made",
        ),
        (&[not_recorded, ("DIFFUSIM_CUDA_GRAPHS", "0")], "no error"),
    ] {
        let output = with_driver(&folder, "sentence::of_a_graph", settings);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains(sentence), "{settings:?}: {text}");
    }
    let output = with_driver(&folder, "sentence::of_a_description", &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("cuda:0: host, compute capability 9.0, 1 GiB"), "{text}");
}

/// What a description says about the kernels that were loaded.
fn kernels_of(output: &Output) -> String {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let line =
        text.lines().find_map(|line| line.split_once(", kernels: ")).unwrap_or_else(|| panic!("{text}"));
    line.1.into()
}

/// By a stand-in for NVRTC, and tests/gpu/test_image.py by itself: cached, used again, made anew where the cache is broken, and
/// PTX where nothing helps.
#[test]
fn cubin_is_compiled_once_and_ptx_is_what_is_left() {
    let folder = host_driver("simt-image", &[]);
    let caches = tempfile::tempdir().unwrap();
    let cache = caches.path().join("is made").join("here");
    let described = |settings: &[(&str, &str)]| {
        let ours = [("DIFFUSIM_CUDA_CACHE", cache.to_str().unwrap()), ("DIFFUSIM_CUDA_IMAGE", "cubin")];
        let settings: Vec<_> = ours.iter().chain(settings).copied().collect();
        with_driver(&folder, "sentence::of_a_description", &settings)
    };
    let kernels = |settings: &[(&str, &str)]| kernels_of(&described(settings));
    let files = || {
        let mut files: Vec<_> =
            std::fs::read_dir(&cache).into_iter().flatten().map(|file| file.unwrap().path()).collect();
        files.sort();
        files
    };
    let _ = std::fs::remove_file(folder.join("libnvrtc.so"));

    // Without a stand-in: what this machine has.
    let told = kernels(&[]);
    let nothing = "PTX, for want of CUBIN: there is no libnvrtc that the dynamic linker finds";
    assert!(told == nothing || told.starts_with("CUBIN for sm_90"), "{told}");
    let _ = std::fs::remove_dir_all(&cache);

    let built = Command::new(std::env::var("CXX").unwrap_or("g++".into()))
        .args(["-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/simt/libnvrtc.cpp"))
        .arg("-o")
        .arg(folder.join("libnvrtc.so"))
        .status()
        .unwrap();
    assert!(built.success(), "tests/simt/libnvrtc.cpp does not compile");

    // Not unless it is asked for.
    for image in ["", "auto", "ptx"] {
        assert_eq!(kernels(&[("DIFFUSIM_CUDA_IMAGE", image)]), "PTX");
    }
    assert!(files().is_empty());

    // Several processes at a time, of which each finds a whole image or makes one.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let told = kernels(&[]);
                assert!(told.starts_with("CUBIN for sm_90"), "{told}");
            });
        }
    });
    let [file] = &files()[..] else { panic!("{:?}", files()) };
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("sm_90-nvrtc12.0-") && name.ends_with(".cubin"), "{name}");
    let known = format!("CUBIN for sm_90 in {}", file.display());
    assert_eq!(kernels(&[]), known);
    // Where the driver has no compiler, without being asked.
    assert_eq!(kernels(&[("DIFFUSIM_CUDA_IMAGE", "auto"), ("SIMT_PTX", "221")]), known);
    // NVRTC compiles no more, and need not.
    assert_eq!(kernels(&[("SIMT_NVRTC_FAILS", "1")]), known);

    // Cut off, changed, empty: made anew.
    let image = std::fs::read(file).unwrap();
    let made = format!("CUBIN for sm_90, compiled by NVRTC 12.0 and kept in {}", file.display());
    let mut changed = image.clone();
    changed[100] ^= 4;
    for bytes in [&image[..image.len() - 1], &changed, &[]] {
        std::fs::write(file, bytes).unwrap();
        assert_eq!(kernels(&[]), made);
        assert_eq!(std::fs::read(file).unwrap(), image);
    }
    // Another GPU, another compiler.
    let told = kernels(&[("SIMT_CAPABILITY", "80")]);
    assert!(told.starts_with("CUBIN for sm_80, compiled by NVRTC 12.0"), "{told}");
    let told = kernels(&[("SIMT_NVRTC_VERSION", "131")]);
    assert!(told.starts_with("CUBIN for sm_90, compiled by NVRTC 13.1"), "{told}");
    assert_eq!(files().len(), 3);

    // A cache that cannot be: the image is used all the same.
    let nowhere = file.join("below a file");
    let told = kernels(&[("DIFFUSIM_CUDA_CACHE", nowhere.to_str().unwrap())]);
    let expected = format!("CUBIN for sm_90, compiled by NVRTC 12.0 and not kept: {}: ", nowhere.display());
    assert!(told.starts_with(&expected), "{told}");
    let told = kernels(&[("DIFFUSIM_CUDA_CACHE", ""), ("XDG_CACHE_HOME", "relative"), ("HOME", "")]);
    let expected = "none of DIFFUSIM_CUDA_CACHE, XDG_CACHE_HOME and HOME names a folder for it";
    assert!(told.ends_with(expected), "{told}");
    // Where it is by default.
    let home = caches.path().to_str().unwrap();
    for (settings, place) in [
        ([("XDG_CACHE_HOME", home), ("HOME", "/nowhere")], caches.path().join("diffusim")),
        ([("XDG_CACHE_HOME", ""), ("HOME", home)], caches.path().join(".cache/diffusim")),
    ] {
        let told = kernels(&[&settings[..], &[("DIFFUSIM_CUDA_CACHE", "")]].concat());
        assert!(told.ends_with(&format!("kept in {}", place.join(name).display())), "{told}");
    }

    // PTX where there is no CUBIN, and a sentence where there is neither.
    for (settings, why) in [
        (("SIMT_NVRTC_VERSION", "118"), "libnvrtc is of CUDA 11.8; expected 12.0 or later"),
        (("SIMT_NVRTC_FAILS", "1"), "NVRTC fails: NVRTC_ERROR_COMPILATION nvrtc: error: it was told to fail"),
    ] {
        let elsewhere = ("DIFFUSIM_CUDA_CACHE", home);
        assert_eq!(kernels(&[settings, elsewhere]), format!("PTX, for want of CUBIN: {why}"));
        for image in ["auto", "cubin"] {
            let output =
                described(&[settings, elsewhere, ("SIMT_PTX", "221"), ("DIFFUSIM_CUDA_IMAGE", image)]);
            let text = String::from_utf8_lossy(&output.stderr);
            let expected = format!(
                "failed while compiling the kernels, and there is no CUBIN ({why}): CUDA_ERROR_JIT_COMPILER_NOT_FOUND"
            );
            assert!(!output.status.success() && text.contains(&expected), "{text}");
        }
    }
    // What is not the compiler's fault is not given to another one.
    let output = described(&[("SIMT_PTX", "2"), ("DIFFUSIM_CUDA_IMAGE", "auto")]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("while compiling the kernels: CUDA_ERROR_OUT_OF_MEMORY; use fewer"), "{text}");
    let output = described(&[("DIFFUSIM_CUDA_IMAGE", "sass")]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("DIFFUSIM_CUDA_IMAGE is 'sass'; expected 'auto', 'ptx' or 'cubin'"), "{text}");
}

mod sentence {
    use super::*;

    fn named() -> String {
        std::env::var("DIFFUSIM_TEST_DEVICE").unwrap_or("cuda".into())
    }

    #[test]
    #[ignore = "run by a_gpu_that_cannot_be_used_is_a_sentence"]
    fn of_a_simulation() {
        let options = Options {
            device: named(),
            step_size: StepSize::EffectiveStep(1e-9),
            allow_unstable: true,
            ..Options::default()
        };
        match diffusim::sampler::Simulation::new(network(), options) {
            Ok(_) => println!("no error"),
            Err(error) => println!("{error}"),
        }
    }

    /// The third launch fails: the steps of the second are kept, and the run can go on.
    #[test]
    #[ignore = "run by a_gpu_that_cannot_be_used_is_a_sentence"]
    fn of_a_failed_launch() {
        let options = |device: &str| Options {
            device: device.into(),
            step_size: StepSize::EffectiveStep(2.3e-7),
            allow_unstable: true,
            n_replicas: 2,
            ..Options::default()
        };
        let [mut cpu, mut gpu] = ["cpu", "cuda"].map(|d| simulation(&network(), options(d)));
        cpu.step(400).unwrap();
        println!("{}", gpu.step(500).unwrap_err());
        assert_eq!(gpu.checkpoint(), cpu.checkpoint());
        cpu.step(100).unwrap();
        gpu.step(100).unwrap();
        assert_eq!(gpu.checkpoint(), cpu.checkpoint());
    }

    #[test]
    #[ignore = "run by a_gpu_that_cannot_be_used_is_a_sentence"]
    fn of_a_graph() {
        let options = Options {
            device: "cuda".into(),
            step_size: StepSize::EffectiveStep(2.3e-7),
            allow_unstable: true,
            ..Options::default()
        };
        let model = Arc::new(Model::load(&fixture("message_passing_open.safetensors"), None).unwrap());
        match simulation(&model, options).step(1) {
            Ok(()) => println!("no error"),
            Err(error) => println!("{error}"),
        }
    }

    #[test]
    #[ignore = "run by a_gpu_that_cannot_be_used_is_a_sentence"]
    fn of_a_description() {
        println!("{}", Device::parse(&named()).unwrap().describe().unwrap());
    }
}

mod device {
    use super::*;
    use cudarc::driver::sys;
    use diffusim::backend::Attachment;
    use diffusim::error::Error;
    use diffusim::noise::normals;
    use diffusim::schedule::{End, Mobility, NoiseSchedule, SpringSchedule, TemperatureSchedule};
    use safetensors::tensor::TensorView;
    use safetensors::{Dtype, SafeTensors};
    use sha2::{Digest, Sha256};

    const ADAPTERS: [Adapter; 5] = [
        Adapter::EulerMaruyama,
        Adapter::LeimkuhlerMatthews,
        Adapter::Heun,
        Adapter::Mala,
        Adapter::Langevin,
    ];

    /// Whether there is a GPU; says why not.
    fn available() -> bool {
        Device::Cuda(0).describe().map_err(|reason| println!("skipped: {reason}")).is_ok()
    }

    /// The same simulation on both devices.
    fn both(model: &Arc<Model>, options: &Options) -> [Simulation; 2] {
        ["cpu", "cuda"].map(|device| simulation(model, Options { device: device.into(), ..options.clone() }))
    }

    fn assert_same_bits(what: &str, [cpu, gpu]: &[Simulation; 2]) {
        let pairs = cpu.positions().iter().zip(gpu.positions());
        let different = pairs.filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        assert_eq!(different, 0, "{what}: of {} coordinates", cpu.positions().len());
        assert_eq!(cpu.statistics(), gpu.statistics(), "{what}");
    }

    fn options() -> Options {
        Options {
            step_size: StepSize::EffectiveStep(2.3e-7),
            allow_unstable: true,
            seed: 0x0123_4567_89ab_cdef,
            ..Options::default()
        }
    }

    fn ala2() -> Arc<Model> {
        Arc::new(Model::load(&root().join("examples/ala2/ala2.safetensors"), None).unwrap())
    }

    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn kernels_of_the_distance_network() {
        if !available() {
            return;
        }
        for adapter in ADAPTERS {
            for (n_replicas, n_steps) in [(1, 205), (2, 7), (9, 5), (40, 3)] {
                let options = Options { n_replicas, first_replica: 11, ..with_adapter(adapter, options()) };
                let mut pair = both(&network(), &options);
                for n in [1, n_steps] {
                    pair.iter_mut().for_each(|s| s.step(n).unwrap());
                    assert_same_bits(&format!("{adapter:?}, {n_replicas} replicas"), &pair);
                }
            }
        }
    }

    /// Widths that are no multiple of anything, a layer of one unit, no signed features.
    fn odd_network(bits_of_weights: u32) -> Arc<Model> {
        let n = 3;
        let widths = [3 + 3, 7, 61, 1, 18, 1]; // pairs and embedding, hidden layers, output
        let bead = json!({"name": "B", "element": "", "residue": "BED", "residue_index": 0, "mass": 31.0});
        let mut metadata = json!({
            "particles": vec![bead; n],
            "format_version": 1, "kind": "distance", "n_particles": n, "length_unit": "nm", "training_temperature": 300.0,
            "noise_levels": {"min": 0.001, "max": 0.1, "simulation": 0.003},
            "hyperparameters": {
                "hidden": widths[1..5], "activation": "silu", "quadruplets": [], "softening": 0.013, "signed_length": 0.12,
                "harmonic": 0.0, "n_frequencies": 1,
            },
        });
        let random = |tensor: u32, len: usize| -> Vec<u8> {
            let number = |i| (0.4 * normals(5, tensor, i, 0)[0]).to_bits() & bits_of_weights;
            (0..len as u32).flat_map(|i| number(i).to_le_bytes()).collect()
        };
        let positive = |value: f32| -> Vec<u8> { [value; 3].iter().flat_map(|x| x.to_le_bytes()).collect() };
        let mut tensors = vec![
            ("feature_mean".into(), vec![3], positive(0.2)),
            ("feature_spread".into(), vec![3], positive(0.07)),
        ];
        for (l, pair) in widths.windows(2).enumerate() {
            let (n_in, n_out) = (pair[0], pair[1]);
            tensors.push((
                format!("layers.{l}.weight"),
                vec![n_in, n_out],
                random(2 * l as u32, n_in * n_out),
            ));
            tensors.push((format!("layers.{l}.bias"), vec![n_out], random(2 * l as u32 + 1, n_out)));
        }
        let start = (0..3 * n).map(|i| 0.1 * i as f32 + 0.03 * (i * i % 5) as f32);
        tensors.push(("start_positions".into(), vec![1, n, 3], start.flat_map(f32::to_le_bytes).collect()));
        let file = |metadata: &serde_json::Value| {
            let views = tensors.iter().map(|(name, shape, bytes): &(String, Vec<usize>, Vec<u8>)| {
                (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
            });
            let header = [("diffusim".to_owned(), metadata.to_string())].into();
            safetensors::serialize(views, Some(header)).unwrap()
        };
        let bytes = file(&metadata); // whose hash belongs into the header
        let data = &bytes[8 + SafeTensors::read_metadata(&bytes).unwrap().0..];
        let hash: String = Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect();
        metadata["weights_sha256"] = json!(hash);
        Arc::new(Model::from_bytes(&file(&metadata), None).unwrap())
    }

    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn kernels_of_an_odd_network() {
        if !available() {
            return;
        }
        for (n_replicas, adapter) in [
            (1, Adapter::Mala),
            (7, Adapter::Langevin),
            (7, Adapter::LeimkuhlerMatthews),
            (33, Adapter::Heun),
            (33, Adapter::Mala),
        ] {
            let mut pair =
                both(&odd_network(!0), &Options { n_replicas, ..with_adapter(adapter, options()) });
            pair.iter_mut().for_each(|s| s.step(9).unwrap());
            assert_same_bits(&format!("{adapter:?}, {n_replicas} replicas"), &pair);
        }
    }

    /// A simulation on tensor cores beside the one on the CPU.
    fn with_high(model: &Arc<Model>, options: &Options) -> [Simulation; 2] {
        let high =
            Options { device: "cuda".into(), matmul_precision: MatmulPrecision::High, ..options.clone() };
        [simulation(model, options.clone()), simulation(model, high)]
    }

    fn root_mean_square(x: &[f64]) -> f64 {
        (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64).sqrt()
    }

    /// Errors of tensor cores: of scores, relative to their root mean square, from a step of Euler-Maruyama; and of what two
    /// energies differ by, in kT, from how probable the acceptance of a proposal was. Root mean square and largest of each.
    fn errors_of_high(model: &Arc<Model>, n_replicas: usize) -> [[f64; 2]; 2] {
        let tau = 1e-6;
        let size = |errors: &[f64]| {
            [root_mean_square(errors), errors.iter().fold(0.0f64, |largest, e| largest.max(e.abs()))]
        };
        let options = Options { n_replicas, step_size: StepSize::EffectiveStep(tau), ..options() };
        let mut pair = with_high(model, &Options { adapter: Adapter::EulerMaruyama, ..options.clone() });
        let start = pair[0].positions().to_vec();
        let mut scores = vec![0.0; start.len()];
        let outputs = Outputs::scores(&mut scores);
        model.score().evaluate(Frames::open(&start), outputs, &mut Scratch::default()).unwrap();
        let mean = root_mean_square(&scores);
        pair.iter_mut().for_each(|s| s.step(1).unwrap());
        let [cpu, gpu] = &pair;
        let errors: Vec<f64> =
            cpu.positions().iter().zip(gpu.positions()).map(|(a, b)| (b - a) / tau / mean).collect();

        let target = 0.5;
        let tuned = Options {
            adapter: Adapter::Mala,
            target_acceptance: Some(target),
            burn_in_steps: 10,
            step_size: StepSize::Recommended,
            ..options
        };
        let mut pair = with_high(model, &tuned);
        pair.iter_mut().for_each(|s| s.step(1).unwrap());
        // The first step adds the probability, less its target, to the logarithm of the factor.
        let [cpu, gpu] =
            pair.each_ref().map(|s| s.step_factors().map(|f| f.ln() + target).collect::<Vec<_>>());
        let uncertain = cpu.iter().zip(&gpu).filter(|(p, _)| **p < 0.999);
        let of_energies: Vec<f64> = uncertain.map(|(p, q)| q.ln() - p.ln()).collect();
        [size(&errors), size(&of_energies)]
    }

    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn kernels_on_tensor_cores() {
        if !available() {
            return;
        }
        for n_replicas in [3, 50] {
            let [scores, energies] = errors_of_high(&ala2(), n_replicas);
            println!("errors with {n_replicas} replicas: scores {scores:?}, energies {energies:?} kT");
            assert!(scores[0] > 1e-9 && scores[0] < 2e-6 && scores[1] < 1e-5, "{scores:?}");
            assert!(energies[0] < 2e-5 && energies[1] < 1e-4, "{energies:?}");
        }
        // Widths that are padded, and every adapter; the same bits again.
        for adapter in ADAPTERS {
            for n_replicas in [1, 50] {
                let options = Options { n_replicas, ..with_adapter(adapter, options()) };
                let [mut cpu, mut gpu] = with_high(&odd_network(0xFFFF_0000), &options);
                let mut again = with_high(&odd_network(0xFFFF_0000), &options).into_iter().last().unwrap();
                [&mut cpu, &mut gpu, &mut again].into_iter().for_each(|s| s.step(9).unwrap());
                let what = format!("{adapter:?}, {n_replicas} replicas");
                let away = |(a, b): (&f64, &f64)| (a - b).abs();
                let furthest = cpu.positions().iter().zip(gpu.positions()).map(away).fold(0.0, f64::max);
                assert!(furthest < 1e-8, "{what}: {furthest} nm");
                assert_same_bits(&what, &[gpu, again]);
            }
        }
    }

    /// What is said where tensor cores cannot be used, and where they are.
    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn tensor_cores_take_bfloat16_only() {
        if !available() {
            return;
        }
        let options = |precision| Options { matmul_precision: precision, device: "cuda".into(), ..options() };
        let error = Simulation::new(network(), options(MatmulPrecision::High)).err().unwrap().to_string();
        assert!(error.contains("needs hidden weights of bfloat16, and layer 0 of this model has"), "{error}");
        let mut simulation = simulation(&ala2(), options(MatmulPrecision::High));
        let status = "cuda:0, one launch for many steps, matmul_precision 'high'; kernels: ";
        assert!(simulation.device_status().starts_with(status), "{}", simulation.device_status());
        simulation.reconfigure(options(MatmulPrecision::Highest)).unwrap();
        assert!(!simulation.device_status().contains("high"), "{}", simulation.device_status());
    }

    /// Coordinates among the features, of which a single particle may have no others.
    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn kernels_of_a_network_in_a_field() {
        if !available() {
            return;
        }
        let model = Arc::new(Model::load(&fixture("distance_field.safetensors"), None).unwrap());
        for adapter in ADAPTERS {
            for n_replicas in [1, 9] {
                let masses = Some(vec![3.1; model.n_particles()]);
                let mut pair =
                    both(&model, &Options { masses, n_replicas, ..with_adapter(adapter, options()) });
                let start: Vec<f64> =
                    (0..pair[0].positions().len()).map(|i| 0.2 * (i as f64 * 0.7).sin()).collect();
                for s in &mut pair {
                    s.set_positions(&start).unwrap();
                    s.step(11).unwrap();
                }
                assert_same_bits(&format!("{adapter:?}, {n_replicas} replicas"), &pair);
            }
        }
    }

    /// The chiral network of few particles in open space, in shared and in global memory, alone and on a subset.
    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn kernels_of_the_message_passing_network() {
        if !available() {
            return;
        }
        let model = Arc::new(Model::load(&fixture("message_passing_open.safetensors"), None).unwrap());
        let n = model.n_particles();
        for adapter in ADAPTERS {
            for n_replicas in [1, 3] {
                let masses = Some(vec![3.1; n]);
                let options = Options { n_replicas, masses, ..with_adapter(adapter, options()) };
                let mut pair = both(&model, &options);
                for n_steps in [1, 3] {
                    pair.iter_mut().for_each(|s| s.step(n_steps).unwrap());
                    assert_same_bits(&format!("{adapter:?}, {n_replicas} replicas"), &pair);
                }
            }
        }
        let places: Vec<usize> = (0..n).map(|i| n + 2 - i).collect();
        let whole = Arc::new(model.subset(n + 4, &places).unwrap());
        let mut pair = both(&whole, &options());
        let start: Vec<f64> =
            (0..3 * (n + 4)).map(|i| 0.08 * (i / 3) as f64 + 0.2 * (i as f64).sin()).collect();
        for s in &mut pair {
            s.set_positions(&start).unwrap();
            s.step(4).unwrap();
        }
        assert_same_bits("subset", &pair);
    }

    /// Boxes that are seen in several images, particles many cells apart, and another cell.
    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn kernels_of_a_periodic_network() {
        if !available() {
            return;
        }
        let model = Arc::new(Model::load(&fixture("message_passing_periodic.safetensors"), None).unwrap());
        let n = model.n_particles();
        let cell = model.start_cell().unwrap();
        for adapter in ADAPTERS {
            let masses = Some(vec![3.1; n]);
            let options =
                Options { n_replicas: 2, first_replica: 3, masses, ..with_adapter(adapter, options()) };
            let step_size = match adapter {
                Adapter::Langevin => options.step_size,
                _ => StepSize::EffectiveStep(1.7e-5),
            };
            let mut pair = both(&model, &Options { step_size, ..options });
            let scattered: Vec<f64> = (0..2 * n)
                .flat_map(|i| {
                    let t = cell.translation(std::array::from_fn(|c| 7 * ((i + c) % 5) as i32 - 12));
                    [0, 1, 2].map(|c| pair[0].positions()[3 * i + c] + t[c])
                })
                .collect();
            for s in &mut pair {
                s.set_positions(&scattered).unwrap();
            }
            for n_steps in [1, 4] {
                pair.iter_mut().for_each(|s| s.step(n_steps).unwrap());
                assert_same_bits(&format!("{adapter:?}"), &pair);
            }
            let wider = cell.vectors().map(|v| v.map(|x| 1.0001 * x));
            for s in &mut pair {
                s.set_cell(Some(Cell::new(wider).unwrap())).unwrap();
                s.step(3).unwrap();
            }
            assert_same_bits(&format!("{adapter:?}, another cell"), &pair);
        }
        // So far away that digits are lost.
        let mut far = model.start_positions()[..3 * n].to_vec();
        far[3 * 11 + 1] = 1e8;
        let errors = both(&model, &options()).each_mut().map(|s| {
            s.set_positions(&far).unwrap();
            s.step(2).unwrap_err()
        });
        assert!(errors[0].to_string().contains("the position of particle 11 is"), "{}", errors[0]);
        assert_eq!(errors[0], errors[1]);
    }

    /// By steps that take someone further than half of the skin.
    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn lists_of_neighbors_are_built_anew() {
        if !available() {
            return;
        }
        let model = Arc::new(Model::load(&fixture("message_passing_periodic.safetensors"), None).unwrap());
        let (n, cell) = (model.n_particles(), model.start_cell().unwrap());
        let places: Vec<usize> = (0..n).map(|i| 2 * (n - i)).collect();
        let whole = Arc::new(model.subset(2 * n + 1, &places).unwrap());
        let options = Options { step_size: StepSize::EffectiveStep(1.7e-5), ..options() };
        let mut pair = both(&whole, &options);
        for s in &mut pair {
            let x: Vec<f64> =
                (0..6 * n + 3).map(|i| 0.13 * (i / 3) as f64 + 0.4 * (i as f64).sin()).collect();
            s.set_cell(Some(cell.clone())).unwrap();
            s.set_positions(&x).unwrap();
        }
        let start = pair[0].positions().to_vec();
        pair.iter_mut().for_each(|s| s.step(90).unwrap());
        let moved = pair[0].positions().iter().zip(&start).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(moved > 0.15 * 0.55, "{moved}");
        assert_same_bits("subset", &pair);
    }

    /// The model of examples/lennard-jones: 256 particles, those of which there are several boxes in a row.
    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn a_fluid_moves_as_on_the_cpu() {
        if !available() {
            return;
        }
        let file = root().join("examples/lennard-jones/lennard-jones.safetensors");
        let model = Arc::new(Model::load(&file, None).unwrap());
        let mut pair = both(&model, &Options { seed: 5, ..Options::default() });
        pair.iter_mut().for_each(|s| s.step(9).unwrap());
        assert_same_bits("one replica", &pair);
        let shifted: Vec<f64> = pair[0].positions().iter().map(|x| x + 0.31).collect();
        for s in &mut pair {
            s.set_positions(&shifted).unwrap();
            s.step(2).unwrap();
        }
        assert_same_bits("shifted", &pair);
    }

    /// The open fixture's network for 90 particles, far apart on a lattice.
    fn dilute() -> Arc<Model> {
        let n = 90;
        let bytes = std::fs::read(fixture("message_passing_open.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let metadata = Model::load(&fixture("message_passing_open.safetensors"), None).unwrap();
        let mut metadata: serde_json::Value = serde_json::from_str(metadata.metadata_json()).unwrap();
        let particles = metadata["particles"].as_array().unwrap().clone();
        metadata["particles"] = (0..n).map(|i| particles[i % particles.len()].clone()).collect();
        metadata["n_particles"] = json!(n);
        for bonds in ["bonds", "bond_ranges"] {
            metadata[bonds] = json!([]);
        }
        let lattice = |i: usize| {
            let at = |c: usize| 0.42 * (i / [1, 5, 25][c] % 5) as f64 + 0.05 * ((7 * i + c) as f64).sin();
            [0, 1, 2].map(|c| at(c) as f32)
        };
        let start: Vec<u8> = (0..n).flat_map(lattice).flat_map(f32::to_le_bytes).collect();
        let with = |metadata: &serde_json::Value| {
            let kept = file.tensors().into_iter().filter(|(name, _)| name != "start_positions");
            let kept: Vec<(String, TensorView)> = kept
                .chain([(
                    "start_positions".into(),
                    TensorView::new(Dtype::F32, vec![1, n, 3], &start).unwrap(),
                )])
                .collect();
            safetensors::serialize(kept, Some([("diffusim".to_owned(), metadata.to_string())].into()))
                .unwrap()
        };
        let bytes = with(&metadata);
        let data = &bytes[8 + SafeTensors::read_metadata(&bytes).unwrap().0..];
        let hash: String = Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect();
        metadata["weights_sha256"] = json!(hash);
        Arc::new(Model::from_bytes(&with(&metadata), None).unwrap())
    }

    /// More than 64 particles in open space, which a bias pulls together until their lists need more room.
    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn lists_of_neighbors_get_more_room() {
        if !available() {
            return;
        }
        let model = dilute();
        let options = Options { step_size: StepSize::EffectiveStep(2.3e-6), ..options() };
        for adapter in [Adapter::LeimkuhlerMatthews, Adapter::Mala] {
            let mut pair = both(&model, &Options { n_replicas: 2, ..with_adapter(adapter, options.clone()) });
            pair.iter_mut().for_each(|s| s.step(3).unwrap());
            assert_same_bits(&format!("{adapter:?}"), &pair);
        }
        let mut pair = both(&model, &options);
        pair.iter_mut().for_each(|s| s.step(3).unwrap());
        for step in 0..10 {
            // A seventh of the way to the middle.
            let forces: Vec<f64> =
                pair[0].positions().iter().map(|x| 2.6 * 0.14 * (0.84 - x) / 2.3e-6).collect();
            pair.iter_mut().for_each(|s| s.step_biased(&forces).unwrap());
            assert_same_bits(&format!("pulled together, {step}"), &pair);
        }
        let extent = pair[1].positions().iter().fold(0.0f64, |m, x| m.max((x - 0.84).abs()));
        assert!(extent < 0.3, "{extent}");

        // Where the caller moved the particles, steps cannot be taken again.
        let [cpu, gpu] = &mut both(&model, &options);
        gpu.step(2).unwrap();
        cpu.step(2).unwrap();
        let dense: Vec<f64> = cpu.positions().iter().map(|x| 0.4 * x).collect();
        write(gpu.device_positions().unwrap(), &dense);
        gpu.enqueue(3, false).unwrap();
        let error = gpu.synchronize().unwrap_err().to_string();
        assert!(error.contains("particles came closer than the GPU had room for"), "{error}");
        assert_eq!(gpu.step_count(), 2);
        write(gpu.device_positions().unwrap(), &dense);
        gpu.enqueue(3, false).unwrap();
        let outcomes = [gpu.synchronize(), cpu.set_positions(&dense).and_then(|()| cpu.step(3))];
        assert_eq!(outcomes[0], outcomes[1]);
        assert_eq!(cpu.positions(), gpu.positions());
    }

    /// Large steps, of which many are rejected.
    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn kernels_of_metropolis_reject_as_the_cpu_does() {
        if !available() {
            return;
        }
        let well = json!({"barrier": 3.1, "half_width": 0.7, "stiffness": 5.5});
        for (model, step) in [(analytic("double-well", 2, 300.0, well), 0.13), (network(), 3e-4)] {
            let options = Options {
                adapter: Adapter::Mala,
                n_replicas: 40,
                step_size: StepSize::EffectiveStep(step),
                temperature: Some(341.0),
                ..options()
            };
            let mut pair = both(&model, &options);
            for n in [1, 29] {
                pair.iter_mut().for_each(|s| s.step(n).unwrap());
                assert_same_bits("metropolis", &pair);
            }
            let acceptance = pair[1].statistics().acceptance.unwrap();
            assert!((0.05..0.95).contains(&acceptance), "{acceptance}");
        }
    }

    /// A score that is fine and an energy that is not.
    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn energies_that_are_no_numbers_are_told_as_on_the_cpu() {
        if !available() {
            return;
        }
        let model = analytic("harmonic", 2, 300.0, json!({"stiffness": 1e-150}));
        let mut pair = both(
            &model,
            &Options {
                adapter: Adapter::Mala,
                n_replicas: 3,
                first_replica: 7,
                step_size: StepSize::EffectiveStep(1e-158),
                ..options()
            },
        );
        let mut start = vec![0.3; 18];
        start[8] = 1e230;
        let errors = pair.each_mut().map(|s| {
            s.set_positions(&start).unwrap();
            s.step(4).unwrap_err()
        });
        assert!(errors[0].to_string().contains("the energy of replica 8 is inf"), "{}", errors[0]);
        assert_eq!(errors[0], errors[1]);
    }

    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn the_network_of_the_demo() {
        if !available() {
            return;
        }
        for n_replicas in [1, 13] {
            let options = Options { n_replicas, seed: 31, ..Options::default() };
            let mut pair = both(&ala2(), &options);
            pair.iter_mut().for_each(|s| s.step(6).unwrap());
            assert_same_bits(&format!("{n_replicas} replicas"), &pair);
        }
    }

    /// Every analytic potential: its kind, particles and parameters, and how far apart those are to be.
    fn potentials() -> [(&'static str, usize, serde_json::Value, f64); 7] {
        let cluster = json!({"well_depth": 1.7, "minimum_distance": 0.9, "stiffness": 0.6});
        let dw4 = json!({"linear": 0.3, "quadratic": -4.0, "quartic": 0.9, "distance": 4.0});
        let mixture = json!({"components": [
            {"weight": 2.3, "mean": [[0.4, -0.2, 0.7], [0.1, 0.9, -0.3]], "spread": [0.6, 0.9, 1.4]},
            {"weight": 0.7, "mean": [[-0.5, 0.3, 0.2], [0.8, -0.6, 0.5]], "spread": [1.1, 0.5, 0.8]},
        ]});
        [
            ("free", 3, json!({}), 1.0),
            ("harmonic", 2, json!({"stiffness": 37.0}), 1.0),
            ("double-well", 2, json!({"barrier": 3.1, "half_width": 0.7, "stiffness": 5.5}), 0.5),
            ("mueller-brown", 1, json!({"kT": 23.0}), 0.3),
            ("lennard-jones-cluster", 13, cluster, 1.1),
            ("dw4", 4, dw4, 3.0),
            ("gaussian-mixture", 2, mixture, 0.5),
        ]
    }

    /// Particles on a lattice, in every frame displaced a little differently.
    fn lattices(n: usize, n_frames: usize, scale: f64) -> Vec<f64> {
        let at = |i: usize| {
            let (c, particle) = (i % 3, i / 3 % n);
            let lattice = (particle / [1, 3, 9][c] % 3) as f64;
            scale * lattice + 0.01 * (i as f64 * 0.7).sin()
        };
        (0..3 * n * n_frames).map(at).collect()
    }

    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn kernels_of_the_analytic_potentials() {
        if !available() {
            return;
        }
        for (kind, n, parameters, scale) in potentials() {
            let model = analytic(kind, n, 300.0, parameters);
            for adapter in ADAPTERS {
                for n_replicas in [1, 70] {
                    let mut pair = both(
                        &model,
                        &Options {
                            n_replicas,
                            masses: Some(vec![1.3; n]),
                            temperature: Some(341.0),
                            ..with_adapter(
                                adapter,
                                Options { step_size: StepSize::EffectiveStep(1.3e-4), ..options() },
                            )
                        },
                    );
                    let start = lattices(n, n_replicas, scale);
                    for s in &mut pair {
                        s.set_positions(&start).unwrap();
                        s.step(25).unwrap();
                    }
                    assert_same_bits(&format!("{kind}, {adapter:?}, {n_replicas} replicas"), &pair);
                }
            }
        }
    }

    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn kernels_take_bias_schedules_mobilities_and_ids() {
        if !available() {
            return;
        }
        let model = network();
        let n = model.n_particles();
        let mut masses: Vec<f64> = (0..n).map(|i| 3.0 + i as f64).collect();
        masses[1] = 0.0; // frozen
        for adapter in ADAPTERS {
            let mut pair = both(
                &model,
                &Options {
                    n_replicas: 3,
                    masses: Some(masses.clone()),
                    mobility: Some(Mobility::FrictionRate(7.0)),
                    particle_ids: Some((0..n as u32).map(|i| 1000 - 3 * i).collect()),
                    spring_schedule: SpringSchedule::given(vec![1.0, 1.7, 0.8], End::Cycle).unwrap(),
                    noise_schedule: NoiseSchedule::given(vec![0.7, 0.9], End::Cycle).unwrap(),
                    temperature_schedule: Some(
                        TemperatureSchedule::given(vec![330.0, 310.0, 290.0], End::Hold).unwrap(),
                    ),
                    ..with_adapter(adapter, options())
                },
            );
            let forces: Vec<f64> = (0..9 * n).map(|i| 300.0 * (i as f64).cos()).collect();
            for _ in 0..2 {
                for s in &mut pair {
                    s.step(3).unwrap();
                    if adapter.takes_bias() {
                        s.step_biased(&forces).unwrap();
                    }
                }
            }
            assert_same_bits(&format!("{adapter:?}"), &pair);
            for s in &mut pair {
                let hotter = Options {
                    adapter: if adapter == Adapter::Mala { Adapter::Heun } else { Adapter::Mala },
                    target_acceptance: None,
                    burn_in_steps: 0,
                    temperature: Some(371.0),
                    temperature_schedule: None,
                    seed: 5,
                    ..s.options().clone()
                };
                s.reconfigure(hotter).unwrap();
                s.step(4).unwrap();
            }
            assert_same_bits("reconfigured", &pair);
        }
    }

    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn kernels_act_on_a_subset() {
        if !available() {
            return;
        }
        let inner = network();
        let n = inner.n_particles();
        let places: Vec<usize> = (0..n).map(|i| 2 * (n - i) - 1).collect();
        let whole = Arc::new(inner.subset(2 * n + 3, &places).unwrap());
        for adapter in ADAPTERS {
            let mut pair = both(
                &whole,
                &Options {
                    n_replicas: 2,
                    masses: Some(vec![3.1; 2 * n + 3]),
                    ..with_adapter(adapter, options())
                },
            );
            let start: Vec<f64> =
                pair[0].positions().iter().enumerate().map(|(i, x)| x + 1e-3 * (i as f64).sin()).collect();
            for s in &mut pair {
                s.set_positions(&start).unwrap();
                s.step(9).unwrap();
            }
            assert_same_bits(&format!("subset, {adapter:?}"), &pair);
        }
    }

    /// The same sentence, the same last good frame.
    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn runaways_are_told_as_on_the_cpu() {
        if !available() {
            return;
        }
        for (model, step, n_steps) in [
            (network(), 3e-3, 1000),
            (
                analytic(
                    "double-well",
                    2,
                    300.0,
                    json!({"barrier": 3.1, "half_width": 0.7, "stiffness": 5.5}),
                ),
                0.37,
                1000,
            ),
        ] {
            let pairs = ADAPTERS.map(|adapter| {
                let step_size = match adapter {
                    Adapter::Langevin => StepSize::TimeStep(100.0 * step),
                    _ => StepSize::EffectiveStep(step),
                };
                let masses = Some(vec![3.1; model.n_particles()]);
                let options = with_adapter(adapter, options());
                both(&model, &Options { step_size, masses, n_replicas: 11, ..options })
            });
            for mut pair in pairs.into_iter().filter(|p| p[0].options().adapter != Adapter::Mala) {
                let failures = pair.each_mut().map(|s| s.step(n_steps).unwrap_err());
                assert!(matches!(failures[0], Error::NotFinite(_)), "{}", failures[0]);
                assert_eq!(failures[0], failures[1]);
                let [cpu, gpu] = &pair;
                assert_eq!((cpu.positions(), cpu.step_count()), (gpu.positions(), gpu.step_count()));
                let again = pair.each_mut().map(|s| s.step(n_steps).unwrap_err());
                assert_eq!(again[0], again[1]);
            }
        }
    }

    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn checkpoints_move_between_devices() {
        if !available() {
            return;
        }
        let [mut cpu, mut gpu] = both(&network(), &Options { n_replicas: 4, ..options() });
        gpu.step(23).unwrap();
        cpu.restore(&gpu.checkpoint()).unwrap();
        [&mut cpu, &mut gpu].into_iter().for_each(|s| s.step(19).unwrap());
        assert_eq!(cpu.checkpoint(), gpu.checkpoint());
        let checkpoint = cpu.checkpoint();
        cpu.step(8).unwrap();
        gpu.step(100).unwrap();
        gpu.restore(&checkpoint).unwrap();
        gpu.step(8).unwrap();
        assert_eq!(cpu.checkpoint(), gpu.checkpoint());
    }

    /// A run does not depend on how it is divided, nor on what else runs on the GPU; and it goes again bit for bit.
    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn simulations_share_a_gpu() {
        if !available() {
            return;
        }
        let run = |seed: u64, parts: &[u64]| {
            let options = Options { device: "cuda".into(), seed, n_replicas: 3, ..options() };
            let mut s = simulation(&network(), options);
            parts.iter().for_each(|n| s.step(*n).unwrap());
            s.positions().to_vec()
        };
        let alone = [run(1, &[30]), run(2, &[30])];
        let threads = [1, 2].map(|seed| std::thread::spawn(move || run(seed, &[1, 7, 22])));
        for (alone, thread) in alone.iter().zip(threads) {
            assert_eq!(*alone, thread.join().unwrap());
        }
    }

    /// A simulation in a caller's context and on its stream: nothing of the caller's is destroyed (else the driver of tests/simt
    /// would say so, or the owner could not), and what was current stays so.
    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn a_caller_lends_its_context_and_stream() {
        if !available() {
            return;
        }
        for with_stream in [false, true] {
            let (mut context, mut stream) = (std::ptr::null_mut(), std::ptr::null_mut());
            let mut popped = std::ptr::null_mut();
            // Safety: as the driver asks for: the context is current until it is popped, and destroyed last.
            unsafe {
                sys::cuCtxCreate_v4(&mut context, std::ptr::null_mut(), 0, 0).result().unwrap();
                if with_stream {
                    sys::cuStreamCreate(&mut stream, 1).result().unwrap();
                }
                sys::cuCtxPopCurrent_v2(&mut popped).result().unwrap();
            }
            let attachment = Attachment { context: context.addr(), stream: stream.addr() };
            for caller in [std::ptr::null_mut(), context] {
                let current = || {
                    let mut current = std::ptr::null_mut();
                    // Safety: writes a pointer.
                    unsafe { sys::cuCtxGetCurrent(&mut current) }.result().unwrap();
                    current
                };
                if !caller.is_null() {
                    // Safety: popped below.
                    unsafe { sys::cuCtxPushCurrent_v2(caller) }.result().unwrap();
                }
                let own = Options { n_replicas: 3, ..options() };
                let lent = Options { attachment: Some(attachment), device: "cuda".into(), ..own.clone() };
                let [mut cpu, mut other] = both(&network(), &own);
                let mut gpu = simulation(&network(), lent);
                for s in [&mut cpu, &mut gpu, &mut other] {
                    s.step(7).unwrap();
                }
                assert_eq!(cpu.checkpoint(), gpu.checkpoint());
                gpu.enqueue(5, false).unwrap();
                cpu.step(5).unwrap();
                assert_eq!(current(), caller);
                gpu.synchronize().unwrap();
                let mut evaluator =
                    Evaluator::new(network().score().clone(), None, 2, 0, Some(attachment)).unwrap();
                evaluator.enqueue(true).unwrap();
                let mut energies = [0.0; 2];
                evaluator.fetch_energies(&mut energies).unwrap();
                assert!(energies[0].is_finite() && energies[0] == energies[1], "{energies:?}");
                drop(evaluator);
                assert_same_bits("lent", &[cpu, gpu]);
                assert_eq!(current(), caller);
                drop(other);
                if !caller.is_null() {
                    // Safety: pushed above.
                    unsafe { sys::cuCtxPopCurrent_v2(&mut popped) }.result().unwrap();
                    assert_eq!(popped, caller);
                }
            }
            // Safety: the owner destroys what it has made.
            unsafe {
                sys::cuCtxPushCurrent_v2(context).result().unwrap();
                if with_stream {
                    sys::cuStreamDestroy_v2(stream).result().unwrap();
                }
                sys::cuCtxPopCurrent_v2(&mut popped).result().unwrap();
                sys::cuCtxDestroy_v2(context).result().unwrap();
            }
        }
        let attachment = Some(Attachment { context: 8, stream: 0 });
        let error = Simulation::new(network(), Options { attachment, ..options() }).err().unwrap();
        assert!(error.to_string().contains("a CUDA context was given and device is 'auto'"), "{error}");
    }

    /// Positions and forces stay on the device, step after step, and nobody waits.
    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn enqueued_steps_are_those_of_the_cpu() {
        if !available() {
            return;
        }
        for adapter in ADAPTERS {
            let options = Options { n_replicas: 9, ..with_adapter(adapter, options()) };
            let mut pair = both(&network(), &options);
            let n_burn_in = options.burn_in_steps;
            if n_burn_in > 0 {
                let error = pair[1].enqueue(1, false).unwrap_err().to_string();
                assert!(error.contains("at step 0 of a burn-in of 300"), "{error}");
                pair.iter_mut().for_each(|s| s.step(n_burn_in).unwrap());
            }
            let forces: Vec<f64> = (0..pair[0].positions().len()).map(|i| 300.0 * (i as f64).cos()).collect();
            let [cpu, gpu] = &mut pair;
            cpu.step(250).unwrap();
            gpu.enqueue(1, false).unwrap();
            gpu.enqueue(249, false).unwrap();
            assert_eq!((gpu.step_count(), cpu.step_count()), (n_burn_in + 250, n_burn_in + 250));
            if adapter.takes_bias() {
                let place = gpu.device_forces().unwrap();
                write(place, &forces);
                for _ in 0..3 {
                    cpu.step_biased(&forces).unwrap();
                    gpu.enqueue(1, true).unwrap();
                }
                assert!(gpu.enqueue(2, true).unwrap_err().to_string().contains("expected 1"));
            } else {
                assert_eq!(gpu.enqueue(1, true), cpu.step_biased(&forces));
            }
            gpu.synchronize().unwrap();
            assert_same_bits(&format!("{adapter:?}"), &pair);
            // What is written to the device is where the next steps start.
            let [cpu, gpu] = &mut pair;
            let moved: Vec<f64> = cpu.positions().iter().map(|x| x + 1e-3 * (900.0 * x).sin()).collect();
            cpu.set_positions(&moved).unwrap();
            let place = gpu.device_positions().unwrap();
            write(place, &moved);
            if adapter.has_velocities() {
                let pushed: Vec<f64> = cpu.velocities().unwrap().iter().map(|v| 0.5 * v + 1e-3).collect();
                cpu.set_velocities(&pushed).unwrap();
                let place = gpu.device_velocities().unwrap();
                write(place, &pushed);
            } else {
                assert_eq!(gpu.device_velocities(), Err(cpu.velocities().unwrap_err()));
            }
            gpu.enqueue(4, false).unwrap();
            cpu.step(4).unwrap();
            gpu.step(3).unwrap();
            cpu.step(3).unwrap();
            assert_same_bits(&format!("{adapter:?}, moved"), &pair);
        }
        let options = Options { step_size: StepSize::EffectiveStep(3e-3), n_replicas: 11, ..options() };
        let [mut cpu, mut gpu] = both(&network(), &options);
        gpu.enqueue(100, false).unwrap();
        gpu.enqueue(100, false).unwrap();
        let error = cpu.step(200).unwrap_err();
        assert_eq!(gpu.synchronize(), Err(error));
        assert_eq!((cpu.positions(), cpu.step_count()), (gpu.positions(), gpu.step_count()));
        let refused = "which has no queue and no memory of its own; use device 'cuda'";
        for error in [
            cpu.enqueue(1, false).unwrap_err(),
            cpu.device_positions().unwrap_err(),
            cpu.device_forces().unwrap_err(),
        ] {
            assert!(error.to_string().contains(refused), "{error}");
        }
    }

    /// From this host to the device.
    fn write(place: u64, numbers: &[f64]) {
        // Safety: `numbers` is as long as the buffer at `place`, in the primary context.
        unsafe {
            let (mut context, mut popped) = (std::ptr::null_mut(), std::ptr::null_mut());
            sys::cuDevicePrimaryCtxRetain(&mut context, 0).result().unwrap();
            sys::cuCtxPushCurrent_v2(context).result().unwrap();
            sys::cuCtxSynchronize().result().unwrap();
            sys::cuMemcpyHtoD_v2(place, numbers.as_ptr().cast(), size_of_val(numbers)).result().unwrap();
            sys::cuCtxPopCurrent_v2(&mut popped).result().unwrap();
            sys::cuDevicePrimaryCtxRelease_v2(0).result().unwrap();
        }
    }

    /// From the device to this host.
    fn read(place: u64, n: usize) -> Vec<f64> {
        let mut numbers = vec![0.0; n];
        // Safety: as in `write`.
        unsafe {
            let (mut context, mut popped) = (std::ptr::null_mut(), std::ptr::null_mut());
            sys::cuDevicePrimaryCtxRetain(&mut context, 0).result().unwrap();
            sys::cuCtxPushCurrent_v2(context).result().unwrap();
            sys::cuCtxSynchronize().result().unwrap();
            sys::cuMemcpyDtoH_v2(numbers.as_mut_ptr().cast(), place, size_of_val(&*numbers))
                .result()
                .unwrap();
            sys::cuCtxPopCurrent_v2(&mut popped).result().unwrap();
            sys::cuDevicePrimaryCtxRelease_v2(0).result().unwrap();
        }
        numbers
    }

    fn evaluator(model: &Model, n_frames: usize) -> Evaluator {
        Evaluator::new(model.score().clone(), model.start_cell().cloned(), n_frames, 0, None).unwrap()
    }

    /// Scores and energies of frames that were put on the device, against the CPU's.
    fn assert_evaluates(
        what: &str,
        model: &Model,
        evaluator: &mut Evaluator,
        cell: Option<&Cell>,
        positions: &[f64],
    ) {
        let n_frames = positions.len() / (3 * model.n_particles());
        let (mut scores, mut energies) = (vec![0.0; positions.len()], vec![0.0; n_frames]);
        let outputs = Outputs::energies(&mut scores, &mut energies);
        model.score().evaluate(Frames { positions, cell }, outputs, &mut Scratch::default()).unwrap();
        let bits = |numbers: &[f64]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        for with_energies in [false, true, false] {
            let before = read(evaluator.device_energies(), n_frames);
            write(evaluator.device_scores(), &vec![f64::NAN; positions.len()]);
            write(evaluator.device_positions(), positions);
            evaluator.enqueue(with_energies).unwrap();
            evaluator.synchronize().unwrap();
            assert_eq!(
                bits(&read(evaluator.device_scores(), positions.len())),
                bits(&scores),
                "{what}: scores"
            );
            let found = read(evaluator.device_energies(), n_frames);
            assert_eq!(
                bits(&found),
                bits(if with_energies { &energies } else { &before }),
                "{what}: energies"
            );
        }
        let mut fetched = vec![0.0; n_frames];
        evaluator.fetch_energies(&mut fetched).unwrap();
        assert_eq!(bits(&fetched), bits(&energies), "{what}");
    }

    /// The start frames of a model, in every copy displaced a little differently.
    fn displaced(model: &Model, n_frames: usize, by: f64) -> Vec<f64> {
        let n = 3 * model.n_particles();
        let start = &model.start_positions()[..n];
        (0..n * n_frames).map(|i| start[i % n] + by * (i as f64 * 0.7).sin()).collect()
    }

    /// Without a step: the bits of the CPU's scores and energies.
    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn kernels_that_evaluate_in_one_launch() {
        if !available() {
            return;
        }
        for (model, by, n_frames) in [
            (network(), 0.01, &[1, 2, 9, 40][..]),
            (odd_network(!0), 0.01, &[1, 33]),
            (Arc::new(Model::load(&fixture("distance_field.safetensors"), None).unwrap()), 0.2, &[1, 9]),
            (ala2(), 0.003, &[1, 13]),
        ] {
            for n_frames in n_frames {
                let what = format!("{} particles, {n_frames} frames", model.n_particles());
                let mut evaluator = evaluator(&model, *n_frames);
                for by in [by, 1.3 * by] {
                    let positions = match model.start_positions() {
                        [] => {
                            (0..3 * model.n_particles() * n_frames).map(|i| by * (i as f64).sin()).collect()
                        }
                        _ => displaced(&model, *n_frames, by),
                    };
                    assert_evaluates(&what, &model, &mut evaluator, None, &positions);
                }
            }
        }
        for (kind, n, parameters, scale) in potentials() {
            let model = analytic(kind, n, 300.0, parameters);
            for n_frames in [1, 70] {
                let positions = lattices(n, n_frames, scale);
                let what = format!("{kind}, {n_frames} frames");
                assert_evaluates(&what, &model, &mut evaluator(&model, n_frames), None, &positions);
            }
        }
        let (inner, n) = (network(), network().n_particles());
        let places: Vec<usize> = (0..n).map(|i| 2 * (n - i) - 1).collect();
        let whole = inner.subset(2 * n + 3, &places).unwrap();
        let positions: Vec<f64> = (0..9 * whole.n_particles()).map(|i| 0.3 * (i as f64).sin()).collect();
        assert_evaluates("subset", &whole, &mut evaluator(&whole, 3), None, &positions);
    }

    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn kernels_that_evaluate_in_several_launches() {
        if !available() {
            return;
        }
        let open = Model::load(&fixture("message_passing_open.safetensors"), None).unwrap();
        for n_frames in [1, 3] {
            let mut evaluator = evaluator(&open, n_frames);
            for by in [0.0, 0.02] {
                let positions = displaced(&open, n_frames, by);
                assert_evaluates("open", &open, &mut evaluator, None, &positions);
            }
        }
        // All pairs are listed once: not from frames that are none.
        let good = displaced(&open, 2, 0.02);
        let mut of_open = evaluator(&open, 2);
        for x in [f64::NAN, f64::INFINITY] {
            let mut bad = good.clone();
            bad[3 * 5 + 1] = x;
            write(of_open.device_positions(), &bad);
            let error = of_open.enqueue(false).unwrap_err();
            assert!(
                matches!(&error, Error::NotFinite(text) if text.contains("the position of particle 5 is")),
                "{error}"
            );
        }
        assert_evaluates("open, after failures", &open, &mut of_open, None, &good);
        let n = open.n_particles();
        let places: Vec<usize> = (0..n).map(|i| n + 2 - i).collect();
        let whole = open.subset(n + 4, &places).unwrap();
        let positions: Vec<f64> =
            (0..6 * (n + 4)).map(|i| 0.08 * (i / 3) as f64 + 0.2 * (i as f64).sin()).collect();
        assert_evaluates("subset", &whole, &mut evaluator(&whole, 2), None, &positions);

        // Periodic, where lists are built anew as particles move, and in another cell.
        let periodic = Model::load(&fixture("message_passing_periodic.safetensors"), None).unwrap();
        let cell = periodic.start_cell().unwrap();
        let mut evaluator = evaluator(&periodic, 2);
        for by in [0.0, 0.01, 0.07, 0.0] {
            let positions = displaced(&periodic, 2, by);
            assert_evaluates("periodic", &periodic, &mut evaluator, Some(cell), &positions);
        }
        let wider = Cell::new(cell.vectors().map(|v| v.map(|x| 1.01 * x))).unwrap();
        evaluator.set_cell(Some(wider.clone())).unwrap();
        assert_evaluates("wider", &periodic, &mut evaluator, Some(&wider), &displaced(&periodic, 2, 0.01));
        assert!(evaluator.set_cell(None).is_err());
        // So far away that digits are lost.
        let mut far = displaced(&periodic, 2, 0.0);
        far[3 * 11 + 1] = 1e8;
        write(evaluator.device_positions(), &far);
        let error = evaluator.enqueue(false).unwrap_err().to_string();
        assert!(error.contains("the position of particle 11 is"), "{error}");
        assert_evaluates("back", &periodic, &mut evaluator, Some(&wider), &displaced(&periodic, 2, 0.0));
    }

    /// A learned network and an analytic potential, and two networks of which one takes several launches.
    fn blends(lambda: f64) -> Vec<Arc<Model>> {
        let open = Arc::new(Model::load(&fixture("message_passing_open.safetensors"), None).unwrap());
        let temperature = open.metadata().training_temperature;
        let well = analytic("harmonic", open.n_particles(), temperature, json!({"stiffness": 37.0}));
        let mixed = Arc::new(Model::blend(&open, &well, lambda).unwrap());
        let n = network().n_particles();
        let places: Vec<usize> = (0..n).map(|i| 2 * (n - i) - 1).collect();
        let within = Arc::new(blend(lambda).subset(2 * n + 3, &places).unwrap());
        vec![blend(lambda), mixed, within]
    }

    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn kernels_that_evaluate_blends() {
        if !available() {
            return;
        }
        for lambda in [0.0, 0.3, 1.0] {
            let start = |model: &Model, by: f64| -> Vec<f64> {
                match model.start_positions() {
                    [] => (0..9 * model.n_particles()).map(|i| 0.3 * (i as f64 + by).sin()).collect(),
                    _ => displaced(model, 3, by),
                }
            };
            for model in blends(lambda) {
                let what = format!("{} particles, λ = {lambda}", model.n_particles());
                let mut evaluator = evaluator(&model, 3);
                assert_evaluates(&what, &model, &mut evaluator, None, &start(&model, 0.01));
            }
            // λ of an evaluator that there is already.
            let mut evaluator = evaluator(&blend(0.6), 3);
            evaluator.set_lambda(lambda).unwrap();
            let model = blend(lambda);
            assert_evaluates(&format!("{lambda}"), &model, &mut evaluator, None, &start(&model, 0.01));
            assert!(evaluator.set_lambda(1.1).unwrap_err().to_string().contains("lambda is 1.1"));
        }
        let error = evaluator(&network(), 1).set_lambda(0.5).unwrap_err().to_string();
        assert!(error.contains("the evaluator is of one model"), "{error}");
    }

    /// Steps of every adapter, through changes of λ.
    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn kernels_of_blends() {
        if !available() {
            return;
        }
        for model in blends(0.4) {
            for adapter in ADAPTERS {
                let masses = Some(vec![3.1; model.n_particles()]);
                let options = Options { n_replicas: 3, masses, ..with_adapter(adapter, options()) };
                let mut pair = both(&model, &options);
                let what = format!("{} particles, {adapter:?}", model.n_particles());
                let start: Vec<f64> = (0..pair[0].positions().len())
                    .map(|i| 0.08 * (i / 3) as f64 + 0.1 * (i as f64).sin())
                    .collect();
                for s in pair.iter_mut().filter(|_| model.start_positions().is_empty()) {
                    s.set_positions(&start).unwrap();
                }
                pair.iter_mut().for_each(|s| s.step(3).unwrap());
                assert_same_bits(&what, &pair);
                for lambda in [0.7, 0.0, 1.0, 0.2] {
                    for s in &mut pair {
                        s.set_lambda(lambda).unwrap();
                        s.step(2).unwrap();
                    }
                    assert_same_bits(&format!("{what}, λ = {lambda}"), &pair);
                }
                if adapter.takes_bias() {
                    let forces: Vec<f64> = start.iter().map(|x| 300.0 * (70.0 * x).cos()).collect();
                    pair.iter_mut().for_each(|s| s.step_biased(&forces).unwrap());
                    assert_same_bits(&format!("{what}, biased"), &pair);
                    let [cpu, gpu] = &mut pair;
                    gpu.enqueue(2, false).unwrap();
                    gpu.enqueue(1, false).unwrap();
                    gpu.synchronize().unwrap();
                    cpu.step(3).unwrap();
                    assert_same_bits(&format!("{what}, enqueued"), &pair);
                }
            }
        }
    }

    /// Lists of neighbours of two networks, for which the host makes room in the midst of a step.
    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn blends_of_networks_with_lists() {
        if !available() {
            return;
        }
        let other = Model::load(&fixture("message_passing_periodic.safetensors"), None).unwrap();
        let model = Arc::new(other);
        let n = model.n_particles();
        let cell = model.start_cell().unwrap().clone();
        let well = Arc::new(Model::blend(&model, &model, 0.3).unwrap());
        let step_size = StepSize::EffectiveStep(1.7e-5);
        for adapter in [Adapter::LeimkuhlerMatthews, Adapter::Heun] {
            let mut pair = both(
                &well,
                &Options { n_replicas: 2, ..with_adapter(adapter, Options { step_size, ..options() }) },
            );
            for scale in [1.0, 1.05] {
                let x: Vec<f64> = displaced(&model, 2, 0.02).iter().map(|x| scale * x).collect();
                for s in &mut pair {
                    s.set_cell(Some(Cell::new(cell.vectors().map(|v| v.map(|x| scale * x))).unwrap()))
                        .unwrap();
                    s.set_positions(&x).unwrap();
                    s.step(6).unwrap();
                }
                assert_same_bits(&format!("{adapter:?}, {scale}"), &pair);
            }
            let mut far = displaced(&model, 2, 0.0);
            far[3 * (n - 1)] = 1e8;
            let errors = pair.each_mut().map(|s| {
                s.set_positions(&far).unwrap();
                s.step(1).unwrap_err()
            });
            assert_eq!(errors[0], errors[1]);
        }
        // Steps that were enqueued before one that cannot be are given up with it.
        let [cpu, gpu] = &mut both(&well, &Options { step_size, ..options() });
        cpu.step(1).unwrap();
        gpu.step(1).unwrap();
        gpu.enqueue(2, false).unwrap();
        let mut far = displaced(&model, 1, 0.0);
        far[0] = 1e8;
        write(gpu.device_positions().unwrap(), &far);
        assert!(gpu.enqueue(1, false).unwrap_err().to_string().contains("the position of particle 0 is"));
        assert_eq!((gpu.positions(), gpu.step_count()), (cpu.positions(), 1));
        cpu.step(2).unwrap();
        gpu.step(2).unwrap();
        assert_eq!((gpu.positions(), gpu.step_count()), (cpu.positions(), 3));

        // Drawn together, where steps would stop but for what the host does.
        let model = dilute();
        let blend = Arc::new(Model::blend(&model, &model, 0.5).unwrap());
        let [cpu, gpu] =
            &mut both(&blend, &Options { step_size: StepSize::EffectiveStep(2.3e-6), ..options() });
        cpu.step(2).unwrap();
        gpu.step(2).unwrap();
        let dense: Vec<f64> = cpu.positions().iter().map(|x| 0.4 * x).collect();
        write(gpu.device_positions().unwrap(), &dense);
        gpu.enqueue(3, false).unwrap();
        assert_eq!(gpu.synchronize(), cpu.set_positions(&dense).and_then(|()| cpu.step(3)));
        assert_eq!(cpu.positions(), gpu.positions());
    }

    /// Nobody is told to evaluate again.
    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn lists_of_an_evaluator_get_more_room() {
        if !available() {
            return;
        }
        let model = dilute();
        let mut evaluator = evaluator(&model, 1);
        for scale in [1.0, 0.6, 0.3, 1.0] {
            let positions: Vec<f64> = model.start_positions().iter().map(|x| scale * x).collect();
            assert_evaluates(&format!("{scale}"), &model, &mut evaluator, None, &positions);
        }
    }

    /// Nothing is written to lists that were given back for longer ones.
    #[test]
    #[ignore = "needs the driver of tests/simt"]
    fn kernels_after_memory_was_short() {
        if !Device::Cuda(0).describe().is_ok_and(|name| name.contains("host")) {
            return;
        }
        let model = dilute();
        let mut evaluator = evaluator(&model, 1);
        let scaled = |by: f64| model.start_positions().iter().map(|x| by * x).collect::<Vec<f64>>();
        assert_evaluates("at first", &model, &mut evaluator, None, &scaled(1.0));
        for _ in 0..2 {
            // Safety: tests run on one thread.
            unsafe { std::env::set_var("SIMT_MEMORY", "0") };
            write(evaluator.device_positions(), &scaled(0.3));
            let error = evaluator.enqueue(false).unwrap_err().to_string();
            assert!(error.contains("CUDA_ERROR_OUT_OF_MEMORY"), "{error}");
            // Safety: as above.
            unsafe { std::env::remove_var("SIMT_MEMORY") };
        }
        assert_evaluates("with memory", &model, &mut evaluator, None, &scaled(0.3));
    }

    /// The driver of tests/simt ends the program if anything is left at exit.
    #[test]
    #[ignore = "needs a GPU, or the driver of tests/simt"]
    fn what_was_taken_is_given_back() {
        if !available() {
            return;
        }
        // What a first simulation leaves in the driver is no loss. The context is held, as asking takes one.
        let free = || {
            let (mut free, mut total) = (0, 0);
            // Safety: writes two numbers.
            unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }.result().unwrap();
            free
        };
        let (mut context, mut popped) = (std::ptr::null_mut(), std::ptr::null_mut());
        // Safety: released and popped below.
        unsafe {
            sys::cuDevicePrimaryCtxRetain(&mut context, 0).result().unwrap();
            sys::cuCtxPushCurrent_v2(context).result().unwrap();
        }
        simulation(&network(), Options { device: "cuda".into(), ..options() }).step(2).unwrap();
        let before = free();
        for i in 0..1000 {
            let options = Options { device: "cuda".into(), n_replicas: 1 + i % 3, ..options() };
            let mut s = simulation(&network(), options);
            let mut e = evaluator(&network(), 1 + i % 3);
            if i % 100 == 0 {
                s.step(2).unwrap();
                e.enqueue(true).unwrap();
            }
        }
        assert!(free() >= before, "{} bytes were not given back", before - free());
        // Safety: retained and pushed above.
        unsafe {
            sys::cuCtxPopCurrent_v2(&mut popped).result().unwrap();
            sys::cuDevicePrimaryCtxRelease_v2(0).result().unwrap();
        }
    }
}
