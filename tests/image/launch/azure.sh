# GROUP, ACCOUNT: yours. SIZE: such as Standard_DC8as_v5 (SEV-SNP) or Standard_DC8es_v5 (TDX).
# IMAGE: the id that `az sig image-version create` prints.
truncate --size=%1M OUT/disk.raw
qemu-img convert -f raw -O vpc -o subformat=fixed,force_size OUT/disk.raw OUT/disk.vhd
az storage blob upload \
  --account-name "$ACCOUNT" \
  --container-name vhds \
  --name enclave.vhd \
  --type page \
  --file OUT/disk.vhd
az sig create --resource-group "$GROUP" --gallery-name enclave
az sig image-definition create \
  --resource-group "$GROUP" \
  --gallery-name enclave \
  --gallery-image-definition enclave \
  --publisher enclave \
  --offer enclave \
  --sku enclave \
  --os-type Linux \
  --os-state Specialized \
  --hyper-v-generation V2 \
  --features SecurityType=ConfidentialVmSupported
az sig image-version create \
  --resource-group "$GROUP" \
  --gallery-name enclave \
  --gallery-image-definition enclave \
  --gallery-image-version 1.0.0 \
  --os-vhd-storage-account "$ACCOUNT" \
  --os-vhd-uri "https://$ACCOUNT.blob.core.windows.net/vhds/enclave.vhd"
az vm create \
  --resource-group "$GROUP" \
  --name enclave \
  --specialized \
  --image "$IMAGE" \
  --size "$SIZE" \
  --security-type ConfidentialVM \
  --os-disk-security-encryption-type VMGuestStateOnly \
  --enable-vtpm true \
  --enable-secure-boot false
