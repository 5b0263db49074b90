# BUCKET, ZONE: yours. TYPE and TEE: such as c3-standard-8 and TDX, or n2d-standard-8 and SEV_SNP.
truncate --size=%1G OUT/disk.raw
tar --format=oldgnu -Sczf OUT/disk.tar.gz -C OUT disk.raw
gcloud storage cp OUT/disk.tar.gz "gs://$BUCKET/enclave.tar.gz"
gcloud compute images create enclave "--source-uri=gs://$BUCKET/enclave.tar.gz" --guest-os-features=UEFI_COMPATIBLE,GVNIC,SEV_SNP_CAPABLE,TDX_CAPABLE
gcloud compute instances create enclave \
  "--zone=$ZONE" \
  "--machine-type=$TYPE" \
  --image=enclave \
  "--confidential-compute-type=$TEE" \
  --maintenance-policy=TERMINATE \
  --shielded-vtpm \
  --no-shielded-secure-boot
