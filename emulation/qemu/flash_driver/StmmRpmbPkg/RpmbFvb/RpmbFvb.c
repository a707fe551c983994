/** @file
  Firmware volume block protocol over OP-TEE's secure storage.

  SPDX-License-Identifier: MIT
**/

#include "RpmbFvb.h"

#include <Library/BaseMemoryLib.h>
#include <Library/DebugLib.h>
#include <Library/MemoryAllocationLib.h>
#include <Library/MmServicesTableLib.h>

UINT8  *mFlash;
UINT8  *mErased;

STATIC EFI_HANDLE  mHandle;

/**
  Find a range of a block in the flash.

  @param[in]      Lba        The block.
  @param[in]      Offset     First byte, from the start of the block.
  @param[in, out] Length     Number of bytes; on return, of those that lie in the block.
  @param[out]     Position   First byte, from the start of the flash.

  @retval EFI_SUCCESS            The block has the whole range.
  @retval EFI_BAD_BUFFER_SIZE    The range goes beyond the block's end, and was shortened.
  @retval EFI_INVALID_PARAMETER  The flash has no such block, or the block no such byte.
**/
STATIC
EFI_STATUS
LocateRange (
  IN     EFI_LBA  Lba,
  IN     UINTN    Offset,
  IN OUT UINTN    *Length,
  OUT    UINTN    *Position
  )
{
  if ((Lba >= FLASH_BLOCKS) || (Offset >= FLASH_BLOCK_SIZE)) {
    *Length = 0;
    return EFI_INVALID_PARAMETER;
  }

  *Position = (UINTN)Lba * FLASH_BLOCK_SIZE + Offset;
  if (*Length > FLASH_BLOCK_SIZE - Offset) {
    *Length = FLASH_BLOCK_SIZE - Offset;
    return EFI_BAD_BUFFER_SIZE;
  }

  return EFI_SUCCESS;
}

STATIC
EFI_STATUS
EFIAPI
FvbGetAttributes (
  IN CONST EFI_FIRMWARE_VOLUME_BLOCK2_PROTOCOL  *This,
  OUT      EFI_FVB_ATTRIBUTES_2                 *Attributes
  )
{
  *Attributes = ((EFI_FIRMWARE_VOLUME_HEADER *)mFlash)->Attributes;
  return EFI_SUCCESS;
}

STATIC
EFI_STATUS
EFIAPI
FvbSetAttributes (
  IN CONST EFI_FIRMWARE_VOLUME_BLOCK2_PROTOCOL  *This,
  IN OUT   EFI_FVB_ATTRIBUTES_2                 *Attributes
  )
{
  EFI_FVB_ATTRIBUTES_2  Requested;

  // Nothing can be switched: reading and writing are enabled and cannot be disabled.
  Requested = *Attributes;
  FvbGetAttributes (This, Attributes);
  return (Requested == *Attributes) ? EFI_SUCCESS : EFI_INVALID_PARAMETER;
}

STATIC
EFI_STATUS
EFIAPI
FvbGetPhysicalAddress (
  IN CONST EFI_FIRMWARE_VOLUME_BLOCK2_PROTOCOL  *This,
  OUT      EFI_PHYSICAL_ADDRESS                 *Address
  )
{
  *Address = (EFI_PHYSICAL_ADDRESS)(UINTN)mFlash;
  return EFI_SUCCESS;
}

STATIC
EFI_STATUS
EFIAPI
FvbGetBlockSize (
  IN CONST EFI_FIRMWARE_VOLUME_BLOCK2_PROTOCOL  *This,
  IN       EFI_LBA                              Lba,
  OUT      UINTN                                *BlockSize,
  OUT      UINTN                                *NumberOfBlocks
  )
{
  if (Lba >= FLASH_BLOCKS) {
    return EFI_INVALID_PARAMETER;
  }

  *BlockSize      = FLASH_BLOCK_SIZE;
  *NumberOfBlocks = FLASH_BLOCKS - (UINTN)Lba;
  return EFI_SUCCESS;
}

STATIC
EFI_STATUS
EFIAPI
FvbRead (
  IN CONST EFI_FIRMWARE_VOLUME_BLOCK2_PROTOCOL  *This,
  IN       EFI_LBA                              Lba,
  IN       UINTN                                Offset,
  IN OUT   UINTN                                *NumBytes,
  IN OUT   UINT8                                *Buffer
  )
{
  EFI_STATUS  Status;
  UINTN       Position;

  Status = LocateRange (Lba, Offset, NumBytes, &Position);
  if (Status != EFI_INVALID_PARAMETER) {
    CopyMem (Buffer, mFlash + Position, *NumBytes);
  }

  return Status;
}

STATIC
EFI_STATUS
EFIAPI
FvbWrite (
  IN CONST EFI_FIRMWARE_VOLUME_BLOCK2_PROTOCOL  *This,
  IN       EFI_LBA                              Lba,
  IN       UINTN                                Offset,
  IN OUT   UINTN                                *NumBytes,
  IN       UINT8                                *Buffer
  )
{
  EFI_STATUS  Status;
  EFI_STATUS  WriteStatus;
  UINTN       Position;

  Status = LocateRange (Lba, Offset, NumBytes, &Position);
  if (Status == EFI_INVALID_PARAMETER) {
    return Status;
  }

  WriteStatus = FlashWrite (Position, *NumBytes, Buffer);
  if (EFI_ERROR (WriteStatus)) {
    *NumBytes = 0;
    return WriteStatus;
  }

  return Status;
}

/**
  Whether a range of blocks lies in the flash.

  @param[in] Lba      The first block.
  @param[in] Blocks   Number of blocks.
**/
STATIC
BOOLEAN
HasBlocks (
  IN EFI_LBA  Lba,
  IN UINTN    Blocks
  )
{
  return (Lba < FLASH_BLOCKS) && (Blocks <= FLASH_BLOCKS - (UINTN)Lba);
}

STATIC
EFI_STATUS
EFIAPI
FvbEraseBlocks (
  IN CONST EFI_FIRMWARE_VOLUME_BLOCK2_PROTOCOL  *This,
  ...
  )
{
  VA_LIST     Ranges;
  EFI_LBA     Lba;
  UINTN       Blocks;
  EFI_STATUS  Status;

  // All ranges are looked at before the first is erased.
  Status = EFI_SUCCESS;
  VA_START (Ranges, This);
  while (!EFI_ERROR (Status) && ((Lba = VA_ARG (Ranges, EFI_LBA)) != EFI_LBA_LIST_TERMINATOR)) {
    Blocks = VA_ARG (Ranges, UINTN);
    if (!HasBlocks (Lba, Blocks)) {
      Status = EFI_INVALID_PARAMETER;
    }
  }

  VA_END (Ranges);
  if (EFI_ERROR (Status)) {
    return Status;
  }

  VA_START (Ranges, This);
  while (!EFI_ERROR (Status) && ((Lba = VA_ARG (Ranges, EFI_LBA)) != EFI_LBA_LIST_TERMINATOR)) {
    Blocks = VA_ARG (Ranges, UINTN);
    Status = FlashWrite ((UINTN)Lba * FLASH_BLOCK_SIZE, Blocks * FLASH_BLOCK_SIZE, mErased);
  }

  VA_END (Ranges);
  return Status;
}

STATIC EFI_FIRMWARE_VOLUME_BLOCK_PROTOCOL  mFvb = {
  FvbGetAttributes,
  FvbSetAttributes,
  FvbGetPhysicalAddress,
  FvbGetBlockSize,
  FvbRead,
  FvbWrite,
  FvbEraseBlocks,
  NULL
};

/**
  Entry point: load the flash, formatting it on the first start, and offer it to the variable
  and fault tolerant write drivers.

  @param[in] ImageHandle     This image.
  @param[in] MmSystemTable   The MM system table.

  @retval EFI_SUCCESS           The protocol is installed.
  @retval EFI_OUT_OF_RESOURCES  No memory.
  @retval others                The storage failed. There will be no variable service.
**/
EFI_STATUS
EFIAPI
RpmbFvbInitialize (
  IN EFI_HANDLE           ImageHandle,
  IN EFI_MM_SYSTEM_TABLE  *MmSystemTable
  )
{
  EFI_STATUS  Status;

  mFlash  = AllocateRuntimePages (EFI_SIZE_TO_PAGES (FLASH_SIZE));
  mErased = AllocateRuntimePages (EFI_SIZE_TO_PAGES (FLASH_SIZE));
  if ((mFlash == NULL) || (mErased == NULL)) {
    return EFI_OUT_OF_RESOURCES;
  }

  SetMem (mErased, FLASH_SIZE, ERASED_BYTE);

  Status = LoadFlash ();
  if (EFI_ERROR (Status)) {
    DEBUG ((DEBUG_ERROR, "%a: no flash: %r\n", __func__, Status));
    return Status;
  }

  return gMmst->MmInstallProtocolInterface (
                  &mHandle,
                  &gEfiSmmFirmwareVolumeBlockProtocolGuid,
                  EFI_NATIVE_INTERFACE,
                  &mFvb
                  );
}
