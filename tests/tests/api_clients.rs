//! The HTTP API in the hands of a client that nobody here wrote: the crate fctools, which starts `posada serve` in the place of
//! firecracker and has guests live their lives.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fctools::process_spawner::DirectProcessSpawner;
use fctools::runtime::tokio::TokioRuntime;
use fctools::vm::api::{VmApi, VmApiError};
use fctools::vm::configuration::{InitMethod, VmConfiguration, VmConfigurationData};
use fctools::vm::models::{
    BalloonDevice, BootSource, CreateSnapshot, Drive, DriveCacheType, EntropyDevice, LoggerSystem,
    MachineConfiguration, RateLimiter, SnapshotType, TokenBucket, UpdateBalloonDevice, UpdateDrive,
    VsockDevice,
};
use fctools::vm::shutdown::{VmShutdownAction, VmShutdownMethod};
use fctools::vm::snapshot::PrepareVmFromSnapshotOptions;
use fctools::vm::{Vm, VmState};
use fctools::vmm::arguments::{VmmApiSocket, VmmArguments, VmmLogLevel};
use fctools::vmm::executor::unrestricted::UnrestrictedVmmExecutor;
use fctools::vmm::installation::VmmInstallation;
use fctools::vmm::ownership::VmmOwnershipModel;
use fctools::vmm::resource::system::ResourceSystem;
use fctools::vmm::resource::{CreatedResourceType, MovedResourceType, Resource, ResourceType};
use posada_tests::guest::runtime_directory;
use posada_tests::served::image;
use posada_tests::{images, posada};
use tokio::runtime::Builder;
use vmm_sys_util::tempdir::TempDir;

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

type Guest = Vm<UnrestrictedVmmExecutor, DirectProcessSpawner, TokioRuntime>;
type Files = ResourceSystem<DirectProcessSpawner, TokioRuntime>;

/// What the client takes for an installation of Firecracker.
struct Installation {
    directory: TempDir,
}

impl Installation {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let installation = Self { directory };
        let script = format!(
            "#!/bin/sh\nXDG_RUNTIME_DIR='{}' exec '{}' serve \"$@\"\n",
            runtime_directory().display(),
            posada_tests::posada::binary().display()
        );
        let firecracker = installation.place("firecracker");
        fs::write(&firecracker, script).unwrap();
        fs::set_permissions(firecracker, Permissions::from_mode(0o755)).unwrap();
        installation
    }

    fn place(&self, name: &str) -> PathBuf {
        self.directory.as_path().join(name)
    }

    fn vmm(&self) -> VmmInstallation {
        VmmInstallation::new(
            self.place("firecracker"),
            self.place("jailer"),
            self.place("snapshot-editor"),
        )
    }

    /// What starts a guest of this name.
    fn executor(&self, name: &str) -> UnrestrictedVmmExecutor {
        let socket = VmmApiSocket::Enabled(self.place(&format!("{name}.sock")));
        let name = format!("{name}-{}", std::process::id());
        UnrestrictedVmmExecutor::new(VmmArguments::new(socket)).id(name.try_into().unwrap())
    }

    /// A guest that says what it hears, with every device that can be had without privileges.
    fn data(&self, files: &mut Files) -> VmConfigurationData {
        let given = |path: &Path| (path.to_owned(), ResourceType::Moved(MovedResourceType::Copied));
        let mut resource =
            |(path, kind)| -> Resource { files.create_resource::<PathBuf>(path, kind).unwrap() };
        VmConfigurationData {
            boot_source: BootSource {
                kernel_image: resource(given(&images::bare())),
                boot_args: Some("acpi=off program=echo".to_owned()),
                initrd: None,
            },
            drives: vec![Drive {
                drive_id: "root".to_owned(),
                is_root_device: true,
                cache_type: Some(DriveCacheType::Writeback),
                partuuid: None,
                is_read_only: Some(false),
                block: Some(resource(given(Path::new(&image(&self.place("root.img")))))),
                rate_limiter: Some(limiter(1 << 20)),
                io_engine: None,
                socket: None,
            }],
            pmem_devices: Vec::new(),
            machine_configuration: MachineConfiguration {
                vcpu_count: 2,
                mem_size_mib: 64,
                smt: Some(false),
                track_dirty_pages: Some(true),
                huge_pages: None,
            },
            cpu_template: None,
            network_interfaces: Vec::new(),
            balloon_device: Some(BalloonDevice {
                amount_mib: 0,
                deflate_on_oom: true,
                stats_polling_interval_s: Some(1),
                free_page_reporting: Some(true),
            }),
            vsock_device: Some(VsockDevice {
                guest_cid: 3,
                // posada removes its socket; the client need not, which would miss what it takes for produced.
                uds: resource(given(&self.place("v.sock"))),
            }),
            logger_system: Some(LoggerSystem {
                logs: Some(resource((
                    self.place("log"),
                    ResourceType::Created(CreatedResourceType::File),
                ))),
                level: Some(VmmLogLevel::Info),
                show_level: Some(true),
                show_log_origin: Some(true),
                module: None,
            }),
            metrics_system: None,
            memory_hotplug_configuration: None,
            mmds_configuration: None,
            entropy_device: Some(EntropyDevice { rate_limiter: None }),
        }
    }

    async fn start(&self, name: &str, init_method: InitMethod) -> Guest {
        let mut files = files();
        let data = self.data(&mut files);
        let configuration = VmConfiguration::New { init_method, data };
        let mut guest = Guest::prepare(self.executor(name), files, self.vmm(), configuration)
            .await
            .unwrap();
        guest.start(PATIENCE).await.unwrap();
        guest
    }
}

fn files() -> Files {
    Files::new(DirectProcessSpawner, TokioRuntime, VmmOwnershipModel::Shared)
}

fn limiter(size: u64) -> RateLimiter {
    let bucket = TokenBucket {
        size,
        one_time_burst: None,
        refill_time: 100,
    };
    RateLimiter {
        bandwidth: bucket.clone(),
        ops: bucket,
    }
}

/// Tells the guest a line, which ends it.
async fn end(guest: &mut Guest) {
    let outcome = guest
        .shutdown([VmShutdownAction {
            method: VmShutdownMethod::WriteToSerial(b"good night\n".to_vec()),
            timeout: Some(PATIENCE),
            graceful: true,
        }])
        .await
        .unwrap();
    assert!(outcome.is_fully_graceful(), "{outcome:?}");
    assert_eq!(guest.get_state(), VmState::Exited);
    guest.cleanup().await.unwrap();
}

fn run(story: impl Future<Output = ()>) {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(story);
}

#[test]
fn a_guest_lives_its_whole_life_by_the_client_and_goes_on_in_another_process() {
    run(async {
        let installation = Installation::new();
        let mut guest = installation.start("client", InitMethod::ViaApiCalls).await;
        let info = guest.get_info().await.unwrap();
        assert!(info.id.starts_with("client-") && !info.is_paused, "{info:?}");
        assert!(guest.get_firecracker_version().await.unwrap().starts_with("1."));
        let machine = guest.get_machine_configuration().await.unwrap();
        assert_eq!((machine.vcpu_count, machine.mem_size_mib), (2, 64));

        guest
            .update_balloon_device(UpdateBalloonDevice { amount_mib: 1 })
            .await
            .unwrap();
        assert_eq!(guest.get_balloon_device().await.unwrap().amount_mib, 1);
        assert_eq!(guest.get_balloon_statistics().await.unwrap().target_mib, 1);
        guest
            .update_drive(UpdateDrive {
                drive_id: "root".to_owned(),
                block: None,
                rate_limiter: Some(limiter(2 << 20)),
            })
            .await
            .unwrap();
        let missing = UpdateDrive {
            drive_id: "missing".to_owned(),
            block: None,
            rate_limiter: None,
        };
        match guest.update_drive(missing).await.unwrap_err() {
            VmApiError::ReceivedErrorResponse { fault_message, .. } => {
                assert!(fault_message.contains("missing"), "{fault_message}");
            }
            other => panic!("{other}"),
        }

        guest.pause().await.unwrap();
        assert!(guest.get_info().await.unwrap().is_paused);
        let mut produced = |name| {
            let files = guest.get_resource_system_mut();
            files
                .create_resource(installation.place(name), ResourceType::Produced)
                .unwrap()
        };
        let create = CreateSnapshot {
            snapshot_type: Some(SnapshotType::Full),
            snapshot: produced("state"),
            mem_file: produced("memory"),
        };
        let snapshot = guest.create_snapshot(create).await.unwrap();
        guest.resume().await.unwrap();
        // Only one guest at a time writes to its disk.
        let options = PrepareVmFromSnapshotOptions {
            executor: installation.executor("next"),
            process_spawner: DirectProcessSpawner,
            runtime: TokioRuntime,
            moved_resource_type: MovedResourceType::Copied,
            ownership_model: VmmOwnershipModel::Shared,
            track_dirty_pages: Some(true),
            resume_vm: Some(true),
            network_overrides: Vec::new(),
        };
        let mut kept = snapshot;
        kept.copy(
            &TokioRuntime,
            installation.place("state.2"),
            installation.place("memory.2"),
        )
        .await
        .unwrap();
        let mut next = kept.prepare_vm(&mut guest, options).await.unwrap();
        end(&mut guest).await;
        next.start(PATIENCE).await.unwrap();
        assert!(!next.get_info().await.unwrap().is_paused);
        end(&mut next).await;
    });
}

#[test]
fn a_guest_of_the_clients_config_file_is_ended_by_the_client() {
    run(async {
        let installation = Installation::new();
        let file = InitMethod::ViaJsonConfiguration(installation.place("guest.json"));
        let mut guest = installation.start("by-file", file).await;
        let name = guest.get_info().await.unwrap().id;
        assert!(posada(&["ps"]).expect_status(0).console().contains(&name));
        let outcome = guest
            .shutdown([VmShutdownAction {
                method: VmShutdownMethod::PauseThenKill,
                timeout: Some(PATIENCE),
                graceful: false,
            }])
            .await
            .unwrap();
        assert!(outcome.errors.is_empty(), "{outcome:?}");
        guest.cleanup().await.unwrap();
        // It was killed: what it has left goes with the next command.
        posada(&["ps"]).expect_status(0);
        assert!(!runtime_directory().join("posada").join(name).exists());
    });
}
